-- Two merchants, a few members, and a row for every rule worth trying. Ids are made to be typed:
-- the first digit tells the kind (1 merchant, 2 member, 3 earn factor, 4 tier, 5 mission, 6 reward,
-- 7 purchase, 8 referral, 9 mission claim, a form).

INSERT INTO public.merchant_master
  (id, name, currency_award_delay_days, currency_award_delay_minutes, currency_award_time, currency_award_timezone)
VALUES
  ('10000000-0000-4000-8000-000000000001', 'Noodles at once', NULL, NULL, NULL, NULL),
  ('10000000-0000-4000-8000-000000000002', 'Books after a week', 7, NULL, '09:00', 'Asia/Bangkok');

INSERT INTO public.earn_factors (id, merchant_id, source_type, currency, component, amount, per_amount) VALUES
  ('30000000-0000-4000-8000-000000000001', '10000000-0000-4000-8000-000000000001', 'purchase', 'points', 'base', 1, 25),
  ('30000000-0000-4000-8000-000000000002', '10000000-0000-4000-8000-000000000001', 'purchase', 'ticket', 'bonus', 1, 1000),
  ('30000000-0000-4000-8000-000000000003', '10000000-0000-4000-8000-000000000001', 'referral', 'points', 'bonus', 100, NULL),
  ('30000000-0000-4000-8000-000000000004', '10000000-0000-4000-8000-000000000001', 'mission', 'points', 'bonus', 50, NULL),
  ('30000000-0000-4000-8000-000000000005', '10000000-0000-4000-8000-000000000002', 'purchase', 'points', 'base', 2, 100);

INSERT INTO public.tiers (id, merchant_id, name, ranking, min_points, upgrade_timing, upgrade_timing_value) VALUES
  ('40000000-0000-4000-8000-000000000001', '10000000-0000-4000-8000-000000000001', 'Bronze', 1, 0, NULL, NULL),
  ('40000000-0000-4000-8000-000000000002', '10000000-0000-4000-8000-000000000001', 'Silver', 2, 500, NULL, NULL),
  ('40000000-0000-4000-8000-000000000003', '10000000-0000-4000-8000-000000000001', 'Gold', 3, 2000, 'delay_days', 1),
  ('40000000-0000-4000-8000-000000000004', '10000000-0000-4000-8000-000000000002', 'Reader', 1, 0, NULL, NULL);

INSERT INTO public.missions (id, merchant_id, name, active) VALUES
  ('50000000-0000-4000-8000-000000000001', '10000000-0000-4000-8000-000000000001', 'Five bowls', true),
  ('50000000-0000-4000-8000-000000000002', '10000000-0000-4000-8000-000000000001', 'Tell us more', true),
  ('50000000-0000-4000-8000-000000000003', '10000000-0000-4000-8000-000000000001', 'Bring a friend', true),
  ('50000000-0000-4000-8000-000000000004', '10000000-0000-4000-8000-000000000001', 'Last summer', false);
INSERT INTO public.mission_conditions (mission_id, condition_type, target) VALUES
  ('50000000-0000-4000-8000-000000000001', 'purchase', 5),
  ('50000000-0000-4000-8000-000000000001', 'points_earned', 200),
  ('50000000-0000-4000-8000-000000000002', 'form_submission', 1),
  ('50000000-0000-4000-8000-000000000003', 'referral_signup', 1),
  ('50000000-0000-4000-8000-000000000003', 'referral_purchase', 1),
  ('50000000-0000-4000-8000-000000000004', 'purchase', 1);
REFRESH MATERIALIZED VIEW public.mv_mission_conditions_expanded;

INSERT INTO public.rewards (id, merchant_id, name, points_cost, stock) VALUES
  ('60000000-0000-4000-8000-000000000001', '10000000-0000-4000-8000-000000000001', 'A bowl of noodles', 100, 10),
  ('60000000-0000-4000-8000-000000000002', '10000000-0000-4000-8000-000000000001', 'The kitchen', 1000000, 1);

-- Member 1 has enough for Silver, member 2 for Gold.
INSERT INTO public.member_tiers (user_id, merchant_id, tier_id) VALUES
  ('20000000-0000-4000-8000-000000000001', '10000000-0000-4000-8000-000000000001', '40000000-0000-4000-8000-000000000001'),
  ('20000000-0000-4000-8000-000000000002', '10000000-0000-4000-8000-000000000001', '40000000-0000-4000-8000-000000000002');
INSERT INTO public.wallet_ledger
  (merchant_id, user_id, currency, transaction_type, amount, signed_amount, balance_before, balance_after, source_type)
VALUES
  ('10000000-0000-4000-8000-000000000001', '20000000-0000-4000-8000-000000000001', 'points', 'earn', 600, 600, 0, 600, 'manual'),
  ('10000000-0000-4000-8000-000000000001', '20000000-0000-4000-8000-000000000002', 'points', 'earn', 2500, 2500, 0, 2500, 'manual');

INSERT INTO public.purchase_ledger
  (id, merchant_id, user_id, transaction_number, transaction_date, total_amount, final_amount, status, record_type, external_ref)
VALUES
  -- awarded at once
  ('70000000-0000-4000-8000-000000000001', '10000000-0000-4000-8000-000000000001', '20000000-0000-4000-8000-000000000001',
   'N-1', now(), 1250.00, 1250.00, 'completed', 'credit', NULL),
  -- waits to be completed by you
  ('70000000-0000-4000-8000-000000000002', '10000000-0000-4000-8000-000000000001', '20000000-0000-4000-8000-000000000001',
   'N-2', now(), 300.00, 275.00, 'pending', 'credit', NULL),
  -- an anonymous sale: skipped
  ('70000000-0000-4000-8000-000000000003', '10000000-0000-4000-8000-000000000001', NULL,
   'N-3', now(), 80.00, 80.00, 'completed', 'credit', NULL),
  -- awarded in a week at nine in Bangkok, a quarter of it taken back
  ('70000000-0000-4000-8000-000000000004', '10000000-0000-4000-8000-000000000002', '20000000-0000-4000-8000-000000000003',
   'B-1', now(), 400.00, 400.00, 'completed', 'credit', NULL),
  ('70000000-0000-4000-8000-000000000005', '10000000-0000-4000-8000-000000000002', '20000000-0000-4000-8000-000000000003',
   'B-1-R', now(), -100.00, -100.00, 'completed', 'debit', 'B-1');

INSERT INTO public.referral_ledger (id, merchant_id, inviter_user_id, invitee_user_id, reward_status, signed_up_at) VALUES
  ('80000000-0000-4000-8000-000000000001', '10000000-0000-4000-8000-000000000001',
   '20000000-0000-4000-8000-000000000001', '20000000-0000-4000-8000-000000000002', 'completed', now());

INSERT INTO public.mission_claims (id, merchant_id, user_id, mission_id, status, claimed_at) VALUES
  ('90000000-0000-4000-8000-000000000001', '10000000-0000-4000-8000-000000000001',
   '20000000-0000-4000-8000-000000000001', '50000000-0000-4000-8000-000000000002', 'approved', now());

INSERT INTO public.form_submissions (id, merchant_id, user_id, form_id, status, submitted_at, answers) VALUES
  ('a0000000-0000-4000-8000-000000000001', '10000000-0000-4000-8000-000000000001',
   '20000000-0000-4000-8000-000000000001', 'a1000000-0000-4000-8000-000000000001', 'completed',
   now() AT TIME ZONE 'UTC', '{"spicy": true, "stars": 5}');

INSERT INTO public.codes (id, merchant_id, code, assigned_to, status, face_value, expires_on) VALUES
  (1, '10000000-0000-4000-8000-000000000001', 'NOODLE-100', '20000000-0000-4000-8000-000000000001',
   'assigned', 100, current_date + 30);
SELECT setval(pg_get_serial_sequence('public.codes', 'id'), 1);
