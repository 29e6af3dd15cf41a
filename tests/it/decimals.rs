//! Every `decimal.handling.mode` x column type x value, as a real Debezium wrote them, decodes to what
//! SQL said.

mod record;

/// `decimal.handling.mode`.
const MODES: [&str; 3] = ["precise", "string", "double"];

/// By schema the columns of its `purchase_ledger`, and their types.
const TABLES: [(&str, &[(&str, &str)]); 4] = [
    // As the catalogue has them, but for two scales.
    (
        "exact",
        &[
            ("final_amount", "numeric(12,2)"),
            ("total_amount", "numeric(12,4)"),
            ("discount_amount", "numeric(10,0)"),
            ("fx_rate", "numeric"),
            ("cash", "money"),
        ],
    ),
    // No amount tells its scale.
    ("unconstrained", &[("final_amount", "numeric"), ("total_amount", "numeric")]),
    // Nothing beside it tells how it is written.
    ("alone", &[("final_amount", "numeric(12,2)")]),
    ("special", &[("final_amount", "numeric(12,2)"), ("fx_rate", "numeric")]),
];
