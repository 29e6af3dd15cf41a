-- Who may log in, for local use; for psql, which takes the passwords from its environment.
\set ON_ERROR_STOP on
\getenv authenticator_password AUTHENTICATOR_PASSWORD
\getenv debezium_password DEBEZIUM_PASSWORD

-- PostgREST logs in as authenticator, which may do nothing, and becomes service_role.
CREATE ROLE service_role NOLOGIN;
CREATE ROLE authenticator LOGIN NOINHERIT PASSWORD :'authenticator_password';
GRANT service_role TO authenticator;
GRANT USAGE ON SCHEMA public TO service_role;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO service_role;
GRANT INSERT ON public.wallet_ledger, public.redemptions TO service_role;
GRANT INSERT, UPDATE ON public.member_tiers TO service_role;
GRANT UPDATE (stock) ON public.rewards TO service_role;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO service_role;

-- Debezium reads the log and, for its snapshot, the published tables.
CREATE ROLE debezium LOGIN REPLICATION PASSWORD :'debezium_password';
GRANT USAGE ON SCHEMA public TO debezium;
GRANT SELECT ON public.purchase_ledger, public.wallet_ledger, public.referral_ledger,
  public.mission_claims, public.form_submissions, public.codes TO debezium;
