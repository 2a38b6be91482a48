"""CONTRACT 1.4 and 3 once more with TLS in front of the gateway, and with TLS on both sides of it.

These are the tests of the plain relay, as they are: only the world that they run in is another one.
"""
from __future__ import annotations

import pytest

from harness.world import World
from test_closes import (  # noqa: F401
    test_a_frame_cut_in_its_header,
    test_a_frame_cut_in_its_payload,
    test_a_frame_cut_right_behind_its_header,
    test_all_that_was_received_goes_out_before_our_close,
    test_client_that_got_our_close,
    test_clients_tcp_ends_without_a_close,
    test_close_behind_data,
    test_close_is_forwarded_as_it_is,
    test_fin_behind_a_close_is_no_event,
    test_flood_behind_an_error_is_dropped,
    test_half_closed_client_gets_the_rest,
    test_half_closed_client_gets_the_rest_for_5_s,
    test_half_closed_client_in_a_frame,
    test_idle_timeout,
    test_nothing_behind_a_peers_close_is_forwarded,
    test_our_close_between_two_fragments,
    test_our_close_waits_for_a_slow_reader,
    test_our_close_waits_for_the_end_of_the_frame_in_progress,
    test_reset_right_behind_a_close,
    test_targets_tcp_ends_without_a_close,
    test_the_other_side_may_finish_what_it_is_sending,
    test_the_server_side_of_each_hop_closes_tcp_first,
    test_top_bit_from_the_target,
    test_what_a_side_sends_behind_our_close_is_dropped,
)
from test_http import (  # noqa: F401
    test_broken_requests,
    test_connection_close,
    test_head_byte_by_byte,
    test_header_timeout_does_not_end_an_upgraded_connection,
    test_keep_alive,
    test_max_sessions,
    test_pipelined_requests,
    test_request_head_must_be_complete_in_time,
)
from test_relay import (  # noqa: F401
    test_a_blocked_direction_does_not_stop_the_other,
    test_a_frame_passes_at_once,
    test_a_reader_that_pauses_stops_the_sender,
    test_close_right_behind_the_targets_101,
    test_data_behind_the_connect_message_and_behind_the_101_at_once,
    test_each_kind_of_frame_passes,
    test_every_split_of_a_header,
    test_random_mix_both_ways_at_once,
    test_slices_of_one_byte,
    test_ten_thousand_tiny_frames,
    test_the_beginning_of_a_frame_passes_before_its_end,
    test_two_sessions_at_once_do_not_mix,
)


@pytest.fixture(params=[{"front_tls": True}, {"front_tls": True, "target_tls": True}], ids=["TLS in front", "TLS on both sides"])
def world(request) -> World:
    return World(**request.param)
