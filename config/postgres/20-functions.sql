-- The functions that the daemon calls, for local use: named arguments and answers of the real ones,
-- rules as small as makes sense. Each takes a repeat.

-- What a source earns: nothing while it does not count, a row for each earn factor when it does.
CREATE FUNCTION public.calc_currency_for_source(
  p_source_type text, p_source_id uuid, p_merchant_id uuid, p_user_id uuid, p_metadata jsonb DEFAULT '{}'
) RETURNS TABLE (currency_type text, component text, amount numeric, earn_factor_id uuid, target_entity_id uuid)
LANGUAGE sql STABLE SET search_path = public AS $$
  WITH source AS (
    SELECT p.final_amount AS spent FROM purchase_ledger p
    WHERE p_source_type = 'purchase' AND p.id = p_source_id
      AND p.merchant_id = p_merchant_id AND p.user_id = p_user_id
      AND p.status = 'completed' AND p.earn_currency AND p.record_type <> 'debit'
    UNION ALL
    SELECT 0 FROM referral_ledger r
    WHERE p_source_type = 'referral' AND r.id = p_source_id
      AND r.merchant_id = p_merchant_id AND r.invitee_user_id = p_user_id
      AND r.reward_status = 'completed'
    UNION ALL
    SELECT 0 FROM mission_claims c
    WHERE p_source_type = 'mission' AND c.id = p_source_id
      AND c.merchant_id = p_merchant_id AND c.user_id = p_user_id
      AND c.status = 'approved'
  ), earned AS (
    SELECT f.*, f.amount * CASE WHEN f.per_amount IS NULL THEN 1 ELSE floor(s.spent / f.per_amount) END AS total
    FROM source s JOIN earn_factors f ON f.merchant_id = p_merchant_id AND f.source_type = p_source_type
  )
  SELECT e.currency::text, e.component::text, e.total, e.id, e.target_entity_id
  FROM earned e WHERE e.total > 0
  ORDER BY e.currency, e.component, e.id
$$;

-- Which tier a member's points call for, beside the one that the member has.
CREATE FUNCTION public.evaluate_user_tier_status(p_user_id uuid, p_merchant_id uuid) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = public AS $$
DECLARE
  earned  numeric;
  latest  timestamptz;
  present tiers;
  target  tiers;
  action  text;
BEGIN
  SELECT coalesce(sum(w.signed_amount), 0), max(w.created_at) INTO earned, latest
  FROM wallet_ledger w
  WHERE w.user_id = p_user_id AND w.merchant_id = p_merchant_id
    AND w.transaction_type = 'earn' AND w.currency = 'points';

  SELECT t.* INTO present FROM member_tiers m JOIN tiers t ON t.id = m.tier_id
  WHERE m.user_id = p_user_id AND m.merchant_id = p_merchant_id;

  SELECT t.* INTO target FROM tiers t
  WHERE t.merchant_id = p_merchant_id AND t.min_points <= earned
  ORDER BY t.ranking DESC LIMIT 1;

  action := CASE
    WHEN target.id IS NULL THEN 'maintain'
    WHEN present.id IS NULL THEN 'assign_entry'
    WHEN target.ranking > present.ranking THEN 'upgrade'
    WHEN target.ranking < present.ranking THEN 'downgrade'
    ELSE 'maintain'
  END;

  RETURN jsonb_build_object(
    'recommended_action', action,
    'recommended_tier_id', target.id,
    'to_tier_ranking', target.ranking,
    'upgrade_timing', target.upgrade_timing,
    'upgrade_timing_value', target.upgrade_timing_value,
    -- From the entry that earned it, not from now: evaluated again it is the same time.
    'effective_at', CASE target.upgrade_timing
      WHEN 'delay_hours' THEN latest + make_interval(hours => target.upgrade_timing_value)
      WHEN 'delay_days' THEN latest + make_interval(days => target.upgrade_timing_value)
    END);
END
$$;

-- Only ever upwards: a repeat, or one that was overtaken, changes nothing.
CREATE FUNCTION public.apply_tier_upgrade(p_user_id uuid, p_merchant_id uuid, p_to_tier_id uuid) RETURNS jsonb
LANGUAGE plpgsql SET search_path = public AS $$
DECLARE
  target tiers;
BEGIN
  SELECT t.* INTO target FROM tiers t WHERE t.id = p_to_tier_id AND t.merchant_id = p_merchant_id;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'merchant % has no tier %', p_merchant_id, p_to_tier_id;
  END IF;

  INSERT INTO member_tiers AS m (user_id, merchant_id, tier_id)
  VALUES (p_user_id, p_merchant_id, p_to_tier_id)
  ON CONFLICT (user_id, merchant_id) DO UPDATE SET tier_id = excluded.tier_id, since = excluded.since
    WHERE (SELECT t.ranking FROM tiers t WHERE t.id = m.tier_id) < target.ranking;

  RETURN jsonb_build_object('success', true, 'changed', FOUND, 'tier_id', p_to_tier_id);
END
$$;

-- Takes the points and hands the reward out, once for each p_event_id: a repeat gets the answer of
-- the first time, a refusal too.
CREATE FUNCTION public.redeem_reward_with_points(
  p_reward_id uuid, p_quantity integer, p_user_id uuid, p_merchant_id uuid, p_event_id text
) RETURNS jsonb
LANGUAGE plpgsql SET search_path = public AS $$
DECLARE
  reward  rewards;
  balance numeric;
  cost    numeric;
  taken   uuid := gen_random_uuid();
  answer  jsonb;
BEGIN
  -- One redemption of a member at a time, so that two of them cannot spend the same points.
  PERFORM pg_advisory_xact_lock(hashtextextended(p_merchant_id::text || p_user_id::text, 0));

  SELECT r.answer INTO answer FROM redemptions r WHERE r.event_id = p_event_id;
  IF FOUND THEN
    RETURN answer;
  END IF;

  SELECT r.* INTO reward FROM rewards r
  WHERE r.id = p_reward_id AND r.merchant_id = p_merchant_id FOR UPDATE;
  SELECT coalesce(sum(w.signed_amount), 0) INTO balance FROM wallet_ledger w
  WHERE w.user_id = p_user_id AND w.merchant_id = p_merchant_id AND w.currency = 'points';
  cost := reward.points_cost * p_quantity;

  answer := CASE
    WHEN reward.id IS NULL THEN jsonb_build_object(
      'success', false, 'error_code', 'REWARD_NOT_FOUND', 'error_message', 'There is no such reward.')
    WHEN p_quantity IS NULL OR p_quantity < 1 THEN jsonb_build_object(
      'success', false, 'error_code', 'INVALID_QUANTITY', 'error_message', 'The quantity must be at least 1.')
    WHEN reward.stock < p_quantity THEN jsonb_build_object(
      'success', false, 'error_code', 'OUT_OF_STOCK', 'error_message', 'This reward has run out.')
    WHEN balance < cost THEN jsonb_build_object(
      'success', false, 'error_code', 'INSUFFICIENT_POINTS',
      'error_message', format('This reward takes %s points, you have %s.', cost, balance))
    ELSE jsonb_build_object(
      'success', true, 'redemption_id', taken, 'points_used', cost, 'balance_after', balance - cost)
  END;

  INSERT INTO redemptions (event_id, id, reward_id, user_id, quantity, answer)
  VALUES (p_event_id, taken, p_reward_id, p_user_id, coalesce(p_quantity, 0), answer);

  IF (answer ->> 'success')::boolean THEN
    UPDATE rewards SET stock = stock - p_quantity WHERE id = p_reward_id;
    INSERT INTO wallet_ledger (merchant_id, user_id, currency, transaction_type, amount, signed_amount,
                               balance_before, balance_after, source_type, source_id)
    VALUES (p_merchant_id, p_user_id, 'points', 'burn', cost, -cost,
            balance, balance - cost, 'reward_redemption', taken);
  END IF;
  RETURN answer;
END
$$;
