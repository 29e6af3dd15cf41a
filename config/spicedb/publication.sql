-- For the connector of debezium/kessel.json, once in SpiceDB's database, as the owner of its tables.
-- The role that the connector logs in as needs LOGIN and REPLICATION; put its name for kessel_cdc.

CREATE PUBLICATION kessel_cdc_publication FOR TABLE
    public.relation_tuple,
    public.relation_tuple_transaction,
    public.namespace_config,
    public.caveat,
    public.schema,
    public.schema_revision;

GRANT USAGE ON SCHEMA public TO kessel_cdc;
GRANT SELECT ON
    public.relation_tuple,
    public.relation_tuple_transaction,
    public.namespace_config,
    public.caveat,
    public.schema,
    public.schema_revision
    TO kessel_cdc;
