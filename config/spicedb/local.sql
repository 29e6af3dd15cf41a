-- For local use: SpiceDB's database and that of the daemon's replica and audit, with who may log in; for psql, which
-- takes the passwords from its environment. Run again it changes nothing but the passwords.
\set ON_ERROR_STOP on
\getenv spicedb_password SPICEDB_PASSWORD
\getenv kessel_password KESSEL_PASSWORD
\getenv kessel_cdc_password KESSEL_CDC_PASSWORD

-- kessel_cdc is the connector's, see publication.sql.
SELECT format('CREATE ROLE %I LOGIN', role) FROM unnest(ARRAY['spicedb', 'kessel', 'kessel_cdc']) AS role
  WHERE role NOT IN (SELECT rolname FROM pg_roles) \gexec
ALTER ROLE spicedb PASSWORD :'spicedb_password';
ALTER ROLE kessel PASSWORD :'kessel_password';
ALTER ROLE kessel_cdc REPLICATION PASSWORD :'kessel_cdc_password';

SELECT format('CREATE DATABASE %I OWNER %I', role, role) FROM unnest(ARRAY['spicedb', 'kessel']) AS role
  WHERE role NOT IN (SELECT datname FROM pg_database) \gexec
