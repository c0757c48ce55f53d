"""Errors in the code of holds and leases, each with the test that finds it.

A *mutation* replaces a piece of the code. A rule of ``docs/design/holds.md`` is tested only if there is a
mutation that breaks it and makes a test fail. Rules without which a limit could be exceeded are broken under
the sequences of ``test_holds_exhaustive.py``. Those that only make the log admit less, or cost records, are
invisible there: other tests find them.

``make mutations`` applies all of them, one after the other, to a copy of the sources in a temporary folder.
"""

from __future__ import annotations

import compileall
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
HOLDS: Final = "streams/stoplog_worker/algorithm/holds.py"
HOLD_SET: Final = "streams/stoplog_worker/algorithm/hold_set.py"
FOLD: Final = "streams/stoplog_worker/algorithm/fold.py"
LEDGER: Final = "streams/stoplog_worker/algorithm/ledger.py"
ADJUSTMENTS: Final = "streams/stoplog_worker/algorithm/adjustments.py"
CODEC: Final = "streams/stoplog_worker/algorithm/state_codec.py"
CACHE: Final = "stoplog/client/lease_cache.py"
TABLE: Final = "stoplog/client/lease_table.py"
BATCHER: Final = "stoplog/client/batcher.py"
BATCH: Final = "stoplog/client/pending_batch.py"
DENIALS: Final = "stoplog/client/deny_cache.py"
GATE: Final = "streams/stoplog_worker/partition/holds_gate.py"
PROOFS: Final = "stoplog/client/update_proofs.py"

_ALGORITHM: Final = "tests/unit/stoplog_worker/algorithm"
_EXHAUSTIVE: Final = f"{_ALGORITHM}/test_holds_exhaustive.py::test_every_sequence_of_events_keeps_the_limit"
_RULES: Final = f"{_ALGORITHM}/test_holds.py::"
_REFUNDS: Final = f"{_ALGORITHM}/test_adjustments.py::"
_STRICT: Final = f"{_ALGORITHM}/test_holds_strict.py::"
_LEASES: Final = "tests/unit/stoplog/client/test_lease_cache.py::"
_CLIENT: Final = "tests/unit/stoplog/client"
_EXPIRY: Final = "tests/unit/stoplog_worker/state/test_expiry.py::"

RUN_S: Final = 240
"""A test that takes longer with a mutation has not found it."""


class Mutation(NamedTuple):
    """An error, and the test that finds it.

    Attributes:
        rule: The rule that it breaks.
        path: The file.
        old: A text that is in the file once.
        new: What it is replaced with.
        found_by: A scope of ``test_holds_exhaustive.py``, or the id of another test.
    """

    rule: str
    path: str
    old: str
    new: str
    found_by: str

    @property
    def test(self) -> str:
        """Id of the test that finds it."""
        return self.found_by if "::" in self.found_by else f"{_EXHAUSTIVE}[{self.found_by}]"


MUTATIONS: Final = [
    # --- 1. state ---
    Mutation(
        "a check is judged beside the open holds",
        HOLDS,
        "excess = cost + held + window.total - limit.max",
        "excess = cost + window.total - limit.max",
        "reservations",
    ),
    Mutation(
        "what is held is not free for a lease",
        HOLDS,
        "for limit in limits) - holds.units",
        "for limit in limits)",
        "large leases",
    ),
    Mutation(
        "a holder is a process: its asks close no leases of others",
        HOLDS,
        "if lease.id[0] == ask.id[0] and lease.ask < ask.number",
        "if lease.ask < ask.number",
        "two processes",
    ),
    # --- 2. order ---
    Mutation(
        "holds end before a check is judged",
        FOLD,
        "            _expire(ledger, position + end, key, state)\n            answers.append(_decide_held",
        "            answers.append(_decide_held",
        _RULES + "test_limit_in_flight_bounds_open_reservations_whatever_their_cost",
    ),
    Mutation(
        "settlements precede the check",
        FOLD,
        "    settled = _settle(ledger, position, now_ms, key, state, row)\n    reason = _plan_fault",
        "    settled: Settled = ()\n    reason = _plan_fault",
        _RULES + "test_check_settles_before_it_is_judged",
    ),
    Mutation(
        "the end of a hold is stored, also if the check is denied",
        FOLD,
        "if state.holds is not None and ledger.expire_holds(state):\n        _changed(",
        "if state.holds is not None and ledger.expire_holds(state) and not position:\n        _changed(",
        _RULES + "test_end_of_hold_on_a_denial_is_stored",
    ),
    Mutation(
        "a check that is refused still settles",
        FOLD,
        "    settled = _settle(ledger, position, now_ms, key, state, row)\n"
        "    reason = _plan_fault(check.plan)\n"
        "    if reason is not None:\n"
        "        return reason\n",
        "    reason = _plan_fault(check.plan)\n"
        "    if reason is not None:\n"
        "        return reason\n"
        "    settled = _settle(ledger, position, now_ms, key, state, row)\n",
        _RULES + "test_check_with_invalid_plan_still_settles",
    ),
    Mutation(
        "a settlement is stored",
        FOLD,
        "if closed or SETTLED_NOW in settled:",
        "if closed:",
        _STRICT + "test_model_of_holders_exercises_every_kind_of_hold",
    ),
    # --- 3. grants ---
    Mutation(
        "a reservation is granted by all limits or none",
        HOLDS,
        "    for limit in limits if known is None or not reserving else ():",
        "    for limit in limits[-1:] if known is None or not reserving else ():",
        "two limits",
    ),
    Mutation(
        "a check beside holds is charged",
        HOLDS,
        "window.charge(now_ms, cost)",
        "window.charge(now_ms, cost - 1)",
        "reservations",
    ),
    Mutation(
        "a reservation holds its cost",
        HOLDS,
        "Hold(ask.id, RESERVATION, 0, now_ms + ask.ttl_ms, cost)",
        "Hold(ask.id, RESERVATION, 0, now_ms + ask.ttl_ms, cost - 1)",
        "reservations",
    ),
    Mutation(
        "a second ask for an open id grants nothing",
        HOLDS,
        "known = holds.get(ask.id) if ask is not None else None",
        "known = None",
        _RULES + "test_repeated_reservation_returns_the_open_one",
    ),
    Mutation(
        "open reservations are bounded",
        HOLDS,
        "if surplus >= 0:",
        "if surplus >= 0 and state.in_flight is not None:",
        _RULES + "test_too_many_reservations_are_denied_with_a_reason",
    ),
    Mutation(
        "an unlimited client holds nothing",
        FOLD,
        "if not limits and (state.in_flight is None or not reserving):",
        "if not limits and not reserving:",
        _RULES + "test_unlimited_client_gets_no_hold_and_its_holds_still_end",
    ),
    Mutation(
        "open leases are bounded",
        HOLDS,
        "or len(leases) >= MAX_LEASES:",
        "or len(leases) > MAX_LEASES:",
        _RULES + "test_leases_of_one_client_are_bounded",
    ),
    # --- 4. leases ---
    Mutation(
        "a lease is for at most what all limits leave",
        HOLDS,
        "free = min(limit.max - windows[limit.window_ms].total for limit in limits)",
        "free = min(limit.max - windows[limit.window_ms].total for limit in limits[-1:])",
        "two limits",
    ),
    Mutation(
        "a lease is for at most what is free",
        HOLDS,
        "units = min(ask.want, most)",
        "units = ask.want",
        "two limits",
    ),
    Mutation(
        "a lease gets a part of what is free",
        HOLDS,
        "SHARE: Final = 2",
        "SHARE: Final = 1",
        _RULES + "test_lease_gets_half_of_what_is_free",
    ),
    Mutation(
        "the part is divided by the open holds",
        HOLDS,
        "free // (SHARE * (holds.open + 1))",
        "free // SHARE",
        _RULES + "test_lease_is_granted_after_the_charge_of_its_check_and_beside_open_holds",
    ),
    Mutation(
        "no lease is smaller than 4 units",
        HOLDS,
        "MIN_LEASE: Final = 4",
        "MIN_LEASE: Final = 3",
        _RULES + "test_lease_too_small_or_too_short_is_not_granted",
    ),
    Mutation(
        "no lease is shorter than 0.1 s",
        HOLDS,
        " or ttl_ms < MIN_LEASE_MS:",
        ":",
        _RULES + "test_lease_too_small_or_too_short_is_not_granted",
    ),
    Mutation(
        "no lease lasts longer than 10 s",
        HOLDS,
        "limits[-1].window_ms // part, MAX_LEASE_MS)",
        "limits[-1].window_ms // part)",
        _RULES + "test_lease_gets_half_of_what_is_free",
    ),
    Mutation(
        "a lease lasts at most 1/20 of the shortest window",
        HOLDS,
        "\n_LEASES_PER_WINDOW: Final = 20",
        "\n_LEASES_PER_WINDOW: Final = 19",
        _RULES + "test_lease_gets_half_of_what_is_free",
    ),
    Mutation(
        "a lease under generous limits lasts at most 1/6 of the shortest window",
        HOLDS,
        "_GENEROUS_LEASES_PER_WINDOW: Final = 6",
        "_GENEROUS_LEASES_PER_WINDOW: Final = 5",
        _RULES + "test_lease_under_generous_limits_may_be_small_and_lasts_longer",
    ),
    Mutation(
        "limits are generous if 64 times the units are free for a lease",
        HOLDS,
        "GENEROUS: Final = 64",
        "GENEROUS: Final = 65",
        _RULES + "test_lease_under_generous_limits_may_be_small_and_lasts_longer",
    ),
    Mutation(
        "a lease is never empty",
        HOLDS,
        "(1 if generous else MIN_LEASE)",
        "(0 if generous else MIN_LEASE)",
        _RULES + "test_lease_under_generous_limits_may_be_small_and_lasts_longer",
    ),
    Mutation(
        "no lease is granted while another window is kept",
        HOLDS,
        "if len(windows) != len(limits) or len(leases)",
        "if len(leases)",
        _RULES + "test_lease_is_not_granted_while_a_dropped_window_is_kept",
    ),
    Mutation(
        "a check that is denied brings no lease",
        HOLDS,
        "    elif allowed:\n        if cost:",
        "    elif allowed or ask is not None:\n        if cost and allowed:",
        _RULES + "test_denied_check_gets_no_lease",
    ),
    # --- 5. asks ---
    Mutation(
        "a late ask closes no later lease",
        HOLDS,
        "and lease.ask < ask.number",
        "and lease.ask != ask.number",
        "late and repeated records",
    ),
    Mutation(
        "an ask does not close the leases that it names",
        HOLDS,
        "closed = set(earlier).difference(ask.keep)",
        "closed = set(earlier)",
        "renewals",
    ),
    Mutation(
        "an ask closes the leases that it does not name",
        HOLDS,
        "closed = set(earlier).difference(ask.keep)",
        "closed = set(earlier).intersection(())",
        _RULES + "test_ask_closes_earlier_leases_of_its_holder_that_it_does_not_name",
    ),
    Mutation(
        "an ask whose number is on an open lease grants nothing",
        HOLDS,
        "lease.id[0] == ask.id[0] and lease.ask == ask.number",
        "lease.id == ask.id",
        _RULES + "test_ask_with_the_number_of_an_open_lease_grants_nothing",
    ),
    # --- 6. settlements ---
    Mutation(
        "a settlement charges what was used",
        HOLDS,
        "_charge(state, now_ms, settlement.used)",
        "_charge(state, now_ms, 0)",
        "ends",
    ),
    Mutation(
        "a partial settlement leaves the rest held",
        HOLDS,
        "holds.shrink(hold.id, max(0, hold.units - settlement.used))",
        "holds.remove(hold.id)",
        "renewals",
    ),
    Mutation(
        "a partial settlement holds no more than the rest",
        HOLDS,
        "max(0, hold.units - settlement.used)",
        "hold.units",
        _RULES + "test_partial_settlement_shrinks_the_hold",
    ),
    Mutation(
        "a repeated settlement changes nothing",
        HOLDS,
        "        if hold.kind == SETTLED:\n            settled.append(hold.ask)\n            continue\n",
        "",
        _RULES + "test_repeated_settlement_returns_what_the_first_one_charged",
    ),
    Mutation(
        "a settled reservation is remembered",
        HOLDS,
        "            if hold.kind == RESERVATION:\n                holds.add(",
        "            if hold.kind == SETTLED:\n                holds.add(",
        _RULES + "test_late_duplicate_of_an_ask_does_not_open_a_settled_reservation_again",
    ),
    Mutation(
        "settled reservations that are remembered are bounded",
        HOLDS,
        "holds.forget_settled(MAX_SETTLED)",
        "holds.forget_settled(MAX_SETTLED + 1)",
        _RULES + "test_reservation_settled_first_is_forgotten_first",
    ),
    # --- refunds ---
    Mutation(
        "a refund with an id is remembered",
        ADJUSTMENTS,
        "remembered = ask.number > 0 and ask.want > 0",
        "remembered = False",
        _REFUNDS + "test_repeated_refund_changes_nothing_for_one_window_and_says_so",
    ),
    Mutation(
        "a refund that returned nothing is remembered, too",
        ADJUSTMENTS,
        "remembered = ask.number > 0 and ask.want > 0",
        "remembered = ask.number > 0 and units > 0",
        _REFUNDS + "test_repeated_refund_is_known_although_there_was_nothing_to_return",
    ),
    Mutation(
        "a refund is remembered for the longest window",
        ADJUSTMENTS,
        "now_ms + max(windows)",
        "now_ms + limits[-1].window_ms",
        _REFUNDS + "test_refund_is_remembered_for_the_longest_window",
    ),
    Mutation(
        "a refund is remembered for the longest window, also if no limit has it any more",
        ADJUSTMENTS,
        "now_ms + max(windows)",
        "now_ms + limits[0].window_ms",
        _REFUNDS + "test_refund_is_remembered_as_long_as_a_kept_window_may_come_back",
    ),
    Mutation(
        "a refund is remembered for a longer window that is new",
        FOLD,
        "        state.holds.keep_refunds(now_ms + max(windows))\n",
        "        pass\n",
        _REFUNDS + "test_refund_is_remembered_longer_once_a_check_meets_a_longer_window",
    ),
    Mutation(
        "the units of a refund are those of the limits in force",
        ADJUSTMENTS,
        "max([returned[limit.window_ms] for limit in limits])",
        "max(returned.values())",
        _REFUNDS + "test_refund_returns_units_of_a_kept_window_and_reports_those_of_the_policy",
    ),
    Mutation(
        "a refund that reduces a kept window only is stored",
        ADJUSTMENTS,
        "Adjusted(any(returned.values()) or remembered",
        "Adjusted(units > 0 or remembered",
        _REFUNDS + "test_refund_of_a_kept_window_is_stored",
    ),
    Mutation(
        "a refund needs refundable limits",
        ADJUSTMENTS,
        "if not state.refundable:",
        "if not state.refundable and not windows:",
        _REFUNDS + "test_refund_under_limits_that_are_not_refundable_changes_nothing_and_says_why",
    ),
    Mutation(
        "the first refund is forgotten first",
        HOLD_SET,
        "self.remove(self._refunds[0])",
        "self.remove(self._refunds[-1])",
        _REFUNDS + "test_refunds_beyond_the_bound_are_forgotten_the_first_one_first",
    ),
    Mutation(
        "nothing settles a refund",
        HOLDS,
        "if hold is None or hold.kind == REFUNDED:",
        "if hold is None:",
        _REFUNDS + "test_remembered_refund_is_no_hold",
    ),
    Mutation(
        "a refund is no open hold",
        HOLD_SET,
        " - len(self._settled) - len(self._refunds)",
        " - len(self._settled)",
        _REFUNDS + "test_remembered_refund_is_no_hold",
    ),
    # --- 7. ends ---
    Mutation(
        "a hold that ends is charged",
        HOLDS,
        "_charge(state, hold.end_ms, hold.units)",
        "_charge(state, hold.end_ms, 0)",
        "ends",
    ),
    Mutation(
        "it is charged at its end, not at its grant",
        HOLDS,
        "_charge(state, hold.end_ms, hold.units)",
        "_charge(state, hold.end_ms - 3_000, hold.units)",
        "parts of leases",
    ),
    Mutation(
        "it is charged at its end, not when that is noticed",
        HOLDS,
        "_charge(state, hold.end_ms, hold.units)",
        "_charge(state, now_ms, hold.units)",
        _RULES + "test_reservation_counts_from_its_grant_until_a_window_after_its_end",
    ),
    Mutation(
        "a hold is over at its end",
        HOLD_SET,
        "self._ends[0][0] <= now_ms",
        "self._ends[0][0] < now_ms",
        _RULES + "test_settlement_of_unknown_ended_or_settled_hold_changes_nothing",
    ),
    # --- 8. limits and resets ---
    Mutation(
        "a changed limit keeps holds",
        LEDGER,
        '        if update.kind == "client" and update.id in self.states:\n',
        '        if update.kind == "client":\n'
        "            self.load([update.id])\n"
        "            if self.states[update.id].holds is not None:\n"
        "                self.states[update.id].holds = None\n"
        "                self.dirty[update.id] = self.states[update.id]\n"
        '        if update.kind == "client" and update.id in self.states:\n',
        "raised limits",
    ),
    Mutation(
        "a changed window keeps holds",
        FOLD,
        "    changed = bool(limits) and reshape(windows, limits, now_ms, newest_ms)\n",
        "    changed = bool(limits) and reshape(windows, limits, now_ms, newest_ms)\n"
        "    if changed and state.windows:\n"
        "        state.holds = None\n",
        "windows",
    ),
    Mutation(
        "a reset keeps holds",
        LEDGER,
        "                self.expire_holds(state)\n                if state.holds is not None:",
        "                state.holds = None\n                if state.holds is not None:",
        "updates",
    ),
    Mutation(
        "a reset with holds keeps empty windows",
        LEDGER,
        "                if state.holds is not None:\n                    # Open holds stay.",
        "                if False:\n                    # Open holds stay.",
        "updates",
    ),
    Mutation(
        "a hold is charged in the windows that are kept",
        HOLDS,
        "        for window in state.windows.values():\n            # What is dropped",
        "        for window in list(state.windows.values())[-1:]:\n            # What is dropped",
        "windows",
    ),
    Mutation(
        "a state with a hold is stored until a window after its end",
        CODEC,
        "if charged_ms and flat[0] != _NEWEST:",
        "if False:",
        _EXPIRY + "test_expiry_keeps_state_with_hold_until_a_window_after_its_end",
    ),
    # --- 9. strictness ---
    Mutation(
        "a settlement is charged no earlier than the use that it reports",
        HOLDS,
        "_charge(state, now_ms, settlement.used)",
        "_charge(state, hold.end_ms - 3_000, settlement.used)",
        "parts of leases",
    ),
    # --- 10. upgrade ---
    Mutation(
        "no hold is granted before the gate opens",
        FOLD,
        "if not ledger.policies.holds_enabled(offset << POSITION_BITS):",
        "if False:",
        _RULES + "test_records_with_holds_are_refused_until_holds_are_enabled",
    ),
    Mutation(
        "the gate stays closed while a worker cannot read holds",
        GATE,
        "old = [other.id for other in others if other.holds is UNSET]",
        "old: list[str] = []",
        "tests/unit/stoplog_worker/partition/test_holds_gate.py::"
        "test_gate_stays_closed_while_a_worker_of_any_lane_cannot_read_holds",
    ),
    # --- denials ---
    Mutation(
        "a denial under refundable limits is not firm",
        HOLDS,
        "None if never else 0 if state.refundable else",
        "None if never else",
        _REFUNDS + "test_denial_under_refundable_limits_may_end_at_any_time",
    ),
    Mutation(
        "a denial of a cost above the limit is firm",
        HOLDS,
        "0 if reason else None if never else 0 if",
        "0 if reason else 0 if",
        _REFUNDS + "test_denial_under_refundable_limits_may_end_at_any_time",
    ),
    Mutation(
        "a gateway keeps a denial as long as it is firm",
        DENIALS,
        "return decision.firm_ms if _regards_holds(decision) else decision.retry_after_ms",
        "return decision.retry_after_ms",
        f"{_CLIENT}/test_deny_cache.py::test_denial_that_depends_on_held_units_is_kept_for_its_firm_time",
    ),
    Mutation(
        "a denial is firm only as far as charges cause it",
        HOLDS,
        "window.free_at_ms(excess - held))",
        "_free_at_ms(window, holds, excess))",
        _RULES + "test_denial_states_when_it_ends_with_and_without_the_holds",
    ),
    # --- the lease cache: time ---
    Mutation(
        "a permit is used only while its lease lasts",
        CACHE,
        "            now >= table.until[row] or (renew and self._should_renew(row, now))",
        "            renew and self._should_renew(row, now)",
        "ends",
    ),
    Mutation(
        "a lease ends earlier than in the log by what clocks may drift",
        TABLE,
        "MARGIN: Final = 31",
        "MARGIN: Final = 101",
        "slow clocks",
    ),
    Mutation(
        "a lease lasts from the sending of its ask",
        TABLE,
        "self.until[row] = until = lease_end(sent_at, grant)",
        "self.until[row] = until = lease_end(now, grant)",
        "slow clocks",
    ),
    # --- the lease cache: updates and proof ---
    Mutation(
        "a permit is used only with proof",
        CACHE,
        "        if now >= table.proof[row].proven_until:\n            return None\n",
        "",
        "unread updates",
    ),
    Mutation(
        "a proof is valid for 0.2 s",
        PROOFS,
        "PROOF_S: Final = 0.2",
        "PROOF_S: Final = 0.3",
        "unread updates",
    ),
    Mutation(
        "an update ends leases",
        CACHE,
        "        self._end_leases(row for row in rows if self._table.partition[row] == partition)\n",
        "",
        "updates",
    ),
    Mutation(
        "a grant is accepted only if its worker had applied every update read",
        CACHE,
        "and self._max_ms and proof.covers(applied)",
        "and self._max_ms",
        "replies and updates",
    ),
    Mutation(
        "permits answer no check of cost 0",
        CACHE,
        "if not cost or cost > left or",
        "if cost > left or",
        _LEASES + "test_checks_of_cost_0_are_neither_counted_nor_answered",
    ),
    Mutation(
        "permits answer no check under another plan",
        CACHE,
        "if not cost or cost > left or check.plan != table.plan[row]:",
        "if not cost or cost > left:",
        _LEASES + "test_check_under_another_plan_ends_the_lease_and_further_asks",
    ),
    Mutation(
        "permits without proof are used before a check fails open without them",
        BATCHER,
        "if fails_closed or not self._leases.spend(check):",
        "if not fails_closed or not self._leases.spend(check):",
        f"{_CLIENT}/test_batcher_leases.py::test_permits_without_proof_are_spent_instead_of_a_further_charge",
    ),
    Mutation(
        "leases of a process are bounded",
        CACHE,
        " or len(self._rows) >= MAX_ENTRIES:",
        ":",
        _LEASES + "test_number_of_clients_is_bounded",
    ),
    # --- the lease cache: what is given back ---
    Mutation(
        "a reservation gives back the lease of its gateway",
        BATCHER,
        "if call.takes_lease and self._leases.give_back(check):",
        "if not reserves and self._leases.give_back(check):",
        f"{_CLIENT}/test_reservations.py::test_reservation_takes_the_lease_of_its_client_back_to_the_log",
    ),
    Mutation(
        "a refund gives back the lease of its gateway",
        BATCHER,
        "if call.takes_lease and self._leases.give_back(check):",
        "if reserves and self._leases.give_back(check):",
        f"{_CLIENT}/test_refunds.py::test_refund_settles_first_what_was_spent_of_the_lease_of_its_client",
    ),
    Mutation(
        "a process that stops gives back everything",
        CACHE,
        "        self._end_leases(self._rows.values())\n        self.abandon",
        "        self.abandon",
        _LEASES + "test_close_gives_everything_back",
    ),
    Mutation(
        "only the grant of the latest ask is accepted",
        CACHE,
        "usable = is_latest and now < lease_end",
        "usable = now < lease_end",
        "late replies",
    ),
    Mutation(
        "a lease that is given back while it is granted is not used",
        CACHE,
        "                del self._asking[row]\n                back.append(Settlement(asked.ask.id, 0))",
        "                back.append(Settlement(asked.ask.id, 0))",
        "late replies",
    ),
    Mutation(
        "permits that a check gives back are not used again",
        CACHE,
        "            back.append(self._finish(row, now))\n        if mark",
        "            back.append(Settlement(self._id(table.number[row]), table.used(row)))\n        if mark",
        "late replies",
    ),
    Mutation(
        "permits that the timer gives back are not used again",
        CACHE,
        "            self._settle(table.partition[row], table.key[row], self._finish(row, now))\n"
        "        if table.ended_number[row]:",
        "            self._settle(\n"
        "                table.partition[row],\n"
        "                table.key[row],\n"
        "                Settlement(self._id(table.number[row]), table.used(row)),\n"
        "            )\n"
        "        if table.ended_number[row]:",
        "ends",
    ),
    Mutation(
        "a check that costs more settles the own lease in its record",
        CACHE,
        "            table.mark[row] = max(before, _SETTLE)",
        "            pass",
        _LEASES + "test_check_that_costs_more_than_is_left_gives_everything_back_first",
    ),
    # --- the lease cache: reports ---
    Mutation(
        "a renewal names the lease in use",
        CACHE,
        "keep = (self._id(lease),) if lease else ()",
        "keep: tuple[HoldId, ...] = ()",
        "renewals",
    ),
    Mutation(
        "a renewal settles what was used",
        CACHE,
        "partial = (Settlement(self._id(lease), used, True),) if used else ()",
        "partial: tuple[Settlement, ...] = ()",
        "renewals",
    ),
    Mutation(
        "a renewal settles in part",
        CACHE,
        "Settlement(self._id(lease), used, True)",
        "Settlement(self._id(lease), used)",
        "renewals",
    ),
    Mutation(
        "a use is reported until a reply confirms the report",
        CACHE,
        "        spent = table.size[row] - table.left[row]\n",
        "        spent = table.reported[row] = table.size[row] - table.left[row]\n",
        "lost reports",
    ),
    Mutation(
        "what two asks report is confirmed once",
        CACHE,
        "table.reported[row] = max(table.reported[row], sent.used)",
        "table.reported[row] += sent.used",
        "late replies",
    ),
    Mutation(
        "a settlement is repeated with asks until a reply confirms it",
        CACHE,
        "again = tuple(self._last(one) for one in ended if self._id(one.number) not in reported)",
        "again: tuple[Settlement, ...] = ()",
        "ends",
    ),
    Mutation(
        "an ask without reply is given back",
        CACHE,
        "                self._settle(one.partition, one.key, Settlement(one.ask.id, 0))\n\n    def _refused",
        "\n    def _refused",
        _LEASES + "test_ask_without_reply_is_given_back",
    ),
    # --- lanes ---
    Mutation(
        "a reply without answers does not come before that of another lane",
        BATCHER,
        "if self._divergence.lanes > 1 and None in known.answers",
        "if self._divergence.lanes > 2 and None in known.answers",
        f"{_CLIENT}/test_lane_divergence.py::"
        "test_lane_that_had_decided_before_a_restart_does_not_answer_before_the_other_one",
    ),
    Mutation(
        "lanes complete each other's replies",
        BATCHER,
        "        known = batch.completed(reply)\n",
        "        known = batch.incomplete\n",
        f"{_CLIENT}/test_lane_divergence.py::test_lanes_that_lack_different_answers_complete_each_other",
    ),
    Mutation(
        "a completed reply has applied what both lanes have",
        BATCH,
        "applied=min(kept.applied, reply.applied)",
        "applied=max(kept.applied, reply.applied)",
        f"{_CLIENT}/test_lane_divergence.py::test_completed_reply_has_applied_only_what_both_lanes_have",
    ),
    Mutation(
        "answers are compared while others are missing",
        BATCHER,
        "        self._divergence.compare(reply)\n        known",
        "        known",
        f"{_CLIENT}/test_lane_divergence.py::test_answers_of_a_lane_are_compared_while_others_are_missing",
    ),
    Mutation(
        "no reply from before the circuit breaker opened closes it",
        BATCHER,
        "            if not batch.futures:\n                # The circuit",
        "            if batch is None:\n                # The circuit",
        f"{_CLIENT}/test_lane_divergence.py::test_reply_from_before_the_breaker_opened_does_not_close_it",
    ),
]


@contextmanager
def copy_of_sources() -> Iterator[Path]:
    """Yield a temporary folder with what the tests need, compiled."""
    with tempfile.TemporaryDirectory(prefix="stoplog-mutations-") as folder:
        copy = Path(folder)
        for name in ("stoplog", "streams", "gateway", "tests/unit", "tests/support"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "tests/conftest.py"):
            shutil.copy(ROOT / name, copy / name)
        compileall.compile_dir(copy, quiet=2)
        yield copy


def survives(mutation: Mutation, copy: Path) -> str:
    """Apply *mutation* to the sources in *copy* for one run of its test.

    Returns:
        What the test printed, if it did not find the mutation; else an empty text. A test that fails for
        another reason than an assertion has not found it.
    """
    path = copy / mutation.path
    source, stat = path.read_text(), path.stat()
    compiled = Path(importlib.util.cache_from_source(str(path)))
    was_compiled = compiled.read_bytes()
    compiled.unlink()
    path.write_text(source.replace(mutation.old, mutation.new))
    options = ["-x", "-q", "--tb=short", "--assert=plain", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, mutation.test]
    try:
        done = subprocess.run(
            command,
            cwd=copy,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""},
            capture_output=True,
            text=True,
            timeout=RUN_S,
        )
    except subprocess.TimeoutExpired:
        return f"no result in {RUN_S} s"
    finally:
        path.write_text(source)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        compiled.write_bytes(was_compiled)
    found = "AssertionError" in done.stdout
    if "::" not in mutation.found_by:
        found = " admitted of " in done.stdout or "AssertionError: refused: " in done.stdout
    return "" if done.returncode == 1 and found else done.stdout + done.stderr


def main() -> int:
    """Apply the mutations whose rule or test contains an argument, or all. Return 1 if one survives."""
    wanted = [
        mutation
        for mutation in MUTATIONS
        if not sys.argv[1:] or any(word in mutation.rule + mutation.found_by for word in sys.argv[1:])
    ]
    survivors = 0
    began = time.monotonic()
    with copy_of_sources() as copy:
        for mutation in wanted:
            at = time.monotonic()
            output = survives(mutation, copy)
            state = "survives" if output else "found"
            print(
                f"{time.monotonic() - at:6.1f} s  {state}: {mutation.rule} ({mutation.found_by})", flush=True
            )
            if output:
                survivors += 1
                print(output[-1_500:], flush=True)
    print(f"{len(wanted)} mutations in {time.monotonic() - began:.0f} s, {survivors} survive")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
