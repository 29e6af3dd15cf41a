//! The column types of the tables that the consumers read (behaviour sections 3 to 9), for records that
//! bring no schema. Columns that are not listed are passed on as they came.

use super::decimal::Form;
use super::time::Unit;

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Uuid,
    Decimal(Form),
    /// With the unit of a number if a schema names it. A column without time zone counts as UTC.
    Timestamp(Option<Unit>),
    Date,
    Integer,
    Bool,
    Json,
    Bytes,
    Xid8,
    /// Anything else: arrays, doubles, times of day, intervals.
    Other,
}

/// One table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    name: &'static str,
    /// The primary key. Under REPLICA IDENTITY DEFAULT only these columns of a delete are real,
    /// whatever `message.key.columns` puts into the record's key.
    pub(super) primary_key: &'static [&'static str],
    columns: &'static [(&'static str, Kind)],
}

impl Table {
    /// The table of this name, if a consumer reads it.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        TABLES.iter().find(|table| table.name == name)
    }

    pub(super) fn kind(&self, column: &str) -> Option<Kind> {
        self.columns.iter().find(|(name, _)| *name == column).map(|(_, kind)| *kind)
    }
}

const TIMESTAMP: Kind = Kind::Timestamp(None);
/// `numeric(p,s)` of money: deployments differ in the scale, so it is configured.
const MONEY: Kind = Kind::Decimal(Form::Configured);
const NUMERIC: Kind = Kind::Decimal(Form::Unconstrained);

const TABLES: &[Table] = &[
    Table {
        name: "purchase_ledger",
        primary_key: &["id"],
        columns: &[
            ("id", Kind::Uuid),
            ("merchant_id", Kind::Uuid),
            ("user_id", Kind::Uuid),
            ("store_id", Kind::Uuid),
            ("transaction_number", Kind::Text),
            ("transaction_date", TIMESTAMP),
            ("total_amount", MONEY),
            ("discount_amount", MONEY),
            ("final_amount", MONEY),
            ("fx_rate", NUMERIC),
            ("item_count", Kind::Integer),
            ("external_seq", Kind::Integer),
            ("status", Kind::Text),
            ("payment_status", Kind::Text),
            ("record_type", Kind::Text),
            ("earn_currency", Kind::Bool),
            ("tags", Kind::Other),
            ("business_date", Kind::Date),
            ("metadata", Kind::Json),
            ("note", Kind::Text),
            ("created_at", TIMESTAMP),
            ("updated_at", TIMESTAMP),
            ("external_ref", Kind::Text),
        ],
    },
    Table {
        name: "wallet_ledger",
        primary_key: &["id"],
        columns: &[
            ("id", Kind::Uuid),
            ("merchant_id", Kind::Uuid),
            ("user_id", Kind::Uuid),
            ("currency", Kind::Text),
            ("target_entity_id", Kind::Uuid),
            ("transaction_type", Kind::Text),
            ("component", Kind::Text),
            ("amount", NUMERIC),
            ("signed_amount", NUMERIC),
            ("balance_before", NUMERIC),
            ("balance_after", NUMERIC),
            ("source_type", Kind::Text),
            ("source_id", Kind::Uuid),
            ("description", Kind::Text),
            ("metadata", Kind::Json),
            ("created_at", TIMESTAMP),
        ],
    },
    Table {
        name: "referral_ledger",
        primary_key: &["id"],
        columns: &[
            ("id", Kind::Uuid),
            ("merchant_id", Kind::Uuid),
            ("inviter_user_id", Kind::Uuid),
            ("invitee_user_id", Kind::Uuid),
            ("reward_status", Kind::Text),
            ("signed_up_at", TIMESTAMP),
            ("first_purchase_at", TIMESTAMP),
            ("created_at", TIMESTAMP),
            ("campaign", Kind::Text),
        ],
    },
    Table {
        name: "mission_claims",
        primary_key: &["id"],
        columns: &[
            ("id", Kind::Uuid),
            ("merchant_id", Kind::Uuid),
            ("user_id", Kind::Uuid),
            ("mission_id", Kind::Uuid),
            ("status", Kind::Text),
            ("progress", Kind::Integer),
            ("claimed_at", TIMESTAMP),
            ("created_at", TIMESTAMP),
        ],
    },
    Table {
        name: "form_submissions",
        primary_key: &["id"],
        columns: &[
            ("id", Kind::Uuid),
            ("merchant_id", Kind::Uuid),
            ("user_id", Kind::Uuid),
            ("form_id", Kind::Uuid),
            ("status", Kind::Text),
            ("submitted_at", TIMESTAMP),
            ("answers", Kind::Json),
        ],
    },
    Table {
        name: "codes",
        primary_key: &["id"],
        columns: &[
            ("id", Kind::Integer),
            ("merchant_id", Kind::Uuid),
            ("code", Kind::Text),
            ("user_id", Kind::Uuid),
            ("assigned_to", Kind::Uuid),
            ("status", Kind::Text),
            ("face_value", Kind::Decimal(Form::Scale(0))),
            ("expires_on", Kind::Date),
            ("redeemed_at", TIMESTAMP),
        ],
    },
    Table {
        name: "relation_tuple",
        primary_key: &[
            "namespace",
            "object_id",
            "relation",
            "userset_namespace",
            "userset_object_id",
            "userset_relation",
            "created_xid",
            "deleted_xid",
        ],
        columns: &[
            ("namespace", Kind::Text),
            ("object_id", Kind::Text),
            ("relation", Kind::Text),
            ("userset_namespace", Kind::Text),
            ("userset_object_id", Kind::Text),
            ("userset_relation", Kind::Text),
            ("caveat_name", Kind::Text),
            ("caveat_context", Kind::Json),
            ("created_xid", Kind::Xid8),
            ("deleted_xid", Kind::Xid8),
            ("expiration", TIMESTAMP),
        ],
    },
    Table {
        name: "namespace_config",
        primary_key: &["namespace", "created_xid", "deleted_xid"],
        columns: &[
            ("namespace", Kind::Text),
            ("serialized_config", Kind::Bytes),
            ("created_xid", Kind::Xid8),
            ("deleted_xid", Kind::Xid8),
        ],
    },
    Table {
        name: "caveat",
        primary_key: &["name", "deleted_xid"],
        columns: &[
            ("name", Kind::Text),
            ("definition", Kind::Bytes),
            ("created_transaction", Kind::Integer),
            ("deleted_transaction", Kind::Integer),
            ("created_xid", Kind::Xid8),
            ("deleted_xid", Kind::Xid8),
        ],
    },
    Table {
        name: "schema",
        primary_key: &["name", "chunk_index", "created_xid"],
        columns: &[
            ("name", Kind::Text),
            ("chunk_index", Kind::Integer),
            ("chunk_data", Kind::Bytes),
            ("created_xid", Kind::Xid8),
            ("deleted_xid", Kind::Xid8),
        ],
    },
    Table {
        name: "schema_revision",
        primary_key: &["name", "created_xid"],
        columns: &[
            ("name", Kind::Text),
            ("hash", Kind::Bytes),
            ("created_xid", Kind::Xid8),
            ("deleted_xid", Kind::Xid8),
        ],
    },
];
