-- What Debezium reads; also right for the real database, there as the tables' owner.

-- With the whole row before a change the daemon sees the transition itself, and a delete's row is
-- real. Without it (REPLICA IDENTITY DEFAULT) it must ask, or guess from a row's age.
ALTER TABLE public.purchase_ledger  REPLICA IDENTITY FULL;
ALTER TABLE public.wallet_ledger    REPLICA IDENTITY FULL;
ALTER TABLE public.referral_ledger  REPLICA IDENTITY FULL;
ALTER TABLE public.mission_claims   REPLICA IDENTITY FULL;
ALTER TABLE public.form_submissions REPLICA IDENTITY FULL;
ALTER TABLE public.codes            REPLICA IDENTITY FULL;

-- The tables by name: FOR ALL TABLES would need a superuser and send what nobody reads.
CREATE PUBLICATION crm_cdc_publication FOR TABLE
  public.purchase_ledger, public.wallet_ledger, public.referral_ledger,
  public.mission_claims, public.form_submissions, public.codes;
