//! The list of the suite, as a macro that runs it over one fabric.

/// Runs every test of the suite on the rig that `$rig` makes.
macro_rules! conforms {
    ($fabric:ident, $rig:path) => {
        mod $fabric {
            conforms!(@tests $rig,
                writes: [
                    writes_land_in_the_order_of_posting,
                    a_completion_implies_placement_of_everything_before,
                    gathered_batches_complete_by_their_last,
                    a_source_that_runs_past_a_rings_end_is_sent_whole,
                    a_ring_is_seen_once_by_the_peer,
                    unsignalled_writes_are_covered_by_a_later_signal,
                    a_write_of_nothing_still_completes,
                    many_small_writes_all_land,
                    more_than_the_limit_is_refused_and_nothing_of_it_posted,
                    completions_that_nobody_polls_are_bounded,
                ],
                reads: [
                    a_read_sees_all_writes_before_it,
                    reads_and_writes_complete_in_posting_order,
                    a_long_read_arrives_whole,
                ],
                events: [
                    an_immediate_comes_after_its_bytes,
                    immediates_keep_their_order,
                    an_immediate_wakes_a_sleeper,
                    a_completion_wakes_a_sleeper,
                    an_interrupt_wakes_one_wait,
                    a_wait_without_events_times_out,
                    callbacks_tell_of_completions_immediates_and_the_end,
                    a_callback_set_late_hears_of_what_was_before,
                ],
                access: [
                    a_write_past_the_end_is_refused_before_it_is_sent,
                    a_forged_length_is_refused_by_the_peer,
                    a_wrong_key_ends_the_connection,
                    memory_registered_for_reading_is_not_written,
                    memory_registered_as_local_is_not_read,
                    memory_registered_for_writing_can_be_read,
                    a_deregistered_key_is_dead,
                    a_key_of_one_endpoint_means_nothing_on_another,
                    a_source_registered_elsewhere_is_refused,
                    a_read_into_memory_registered_elsewhere_is_refused,
                ],
                bulk: [
                    one_write_of_64_mib_lands_whole,
                    both_sides_may_send_bulk_at_once,
                    both_sides_may_read_bulk_at_once,
                    registrations_come_and_go_while_bulk_lands,
                    posting_bulk_does_not_wait_for_the_network,
                    two_endpoints_do_not_disturb_each_other,
                ],
                revoke: [
                    after_revoke_returned_no_byte_lands,
                    a_revoked_peer_is_told_so,
                    revoke_ends_our_own_requests_too,
                    revoke_is_repeatable_and_works_on_a_dead_endpoint,
                ],
                failure: [
                    a_killed_peer_completes_everything_with_an_error,
                    a_stopped_peer_blocks_no_call,
                    a_dropped_endpoint_is_noticed,
                    a_dropped_endpoint_reads_its_memory_no_more,
                    a_dead_endpoint_refuses_posts_and_says_closed,
                    an_offer_that_was_dropped_admits_nobody,
                    an_offer_admits_one_peer,
                    waiting_for_a_peer_ends_at_the_deadline,
                    an_address_of_another_kind_is_refused,
                ],
            );
        }
    };
    (@tests $rig:path, $($room:ident: [$($name:ident,)*],)*) => {
        $($(
            #[test]
            fn $name() {
                crate::$room::$name(&$rig());
            }
        )*)*
    };
}
