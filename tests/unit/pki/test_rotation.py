"""Every decision about the CA and the serving certificate of the state API."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from reattach.pki.ca import KeyPair, new_authority, new_serving, pem_of
from reattach.pki.rotation import (
    CertificateSettings,
    CopyBundle,
    DropPrevious,
    IssueServing,
    RecordDistribution,
    ReplaceAuthority,
    Step,
    StoredCertificates,
    Wait,
    next_step,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
NAMES = ("reattach-server.reattach.svc", "reattach-server.reattach.svc.cluster.local")
SETTINGS = CertificateSettings(namespace="reattach", ca_secret="ca", tls_secret="tls", dns_names=NAMES)


def settled(made: datetime = NOW) -> StoredCertificates:
    """A CA and its serving certificate, made at that time, with nothing left to do."""
    authority = new_authority(made, SETTINGS.ca_lifetime)
    return with_serving_of(authority, StoredCertificates(authority=authority), made)


def with_serving_of(
    authority: KeyPair, stored: StoredCertificates, made: datetime, names: tuple[str, ...] = NAMES
) -> StoredCertificates:
    serving = new_serving(authority, names, made, SETTINGS.serving_lifetime)
    return replace(stored, serving=serving, bundle=stored.pem)


def renewed(stored: StoredCertificates, made: datetime, names: tuple[str, ...] = NAMES) -> StoredCertificates:
    """With a serving certificate that the present CA issued at that time."""
    assert stored.authority
    return with_serving_of(stored.authority, stored, made, names)


def in_overlap(made: datetime = NOW, *, distributed: datetime | None = None) -> StoredCertificates:
    """A new CA, made at that time; the serving certificate is still the old one's."""
    before = settled(made - 10 * DAY)
    assert before.authority
    new = replace(
        before,
        authority=new_authority(made, SETTINGS.ca_lifetime),
        previous=(before.authority.certificate,),
        distributed_time=distributed,
    )
    return replace(new, bundle=new.pem)


def step(stored: StoredCertificates, now: datetime = NOW, *, lagging: bool = False) -> Step:
    return next_step(stored, SETTINGS, now, lagging=lagging)


# -- the CA ----------------------------------------------------------------------------------------


def test_without_secrets_a_ca_is_made_first() -> None:
    assert step(StoredCertificates()) == ReplaceAuthority((), "it is absent or damaged")


def test_a_fresh_pair_is_left_alone_and_looked_at_again_soon() -> None:
    assert step(settled()) == Wait(NOW + SETTINGS.check_every)


def test_a_ca_with_two_thirds_of_its_life_over_is_replaced_and_stays_trusted() -> None:
    made = NOW - SETTINGS.ca_lifetime * 2 / 3
    old = renewed(settled(made), NOW - DAY)
    assert isinstance(step(old, NOW - MINUTE), CopyBundle | Wait)
    assert step(replace(old, bundle=old.pem)) == ReplaceAuthority(old.trusted, "two thirds of its lifetime have passed")


def test_an_expired_ca_is_replaced_and_no_longer_trusted() -> None:
    expired = settled(NOW - SETTINGS.ca_lifetime)
    assert step(expired) == ReplaceAuthority((), "it is not valid now")


def test_a_ca_from_the_future_is_replaced() -> None:
    """Whoever made it had a clock far ahead: by the clocks of the pods it isn't valid yet."""
    assert step(settled(NOW + 2 * timedelta(hours=1))) == ReplaceAuthority((), "it is not valid now")


@pytest.mark.parametrize("skew", [timedelta(minutes=-59), timedelta(minutes=59)])
def test_clocks_that_differ_by_less_than_an_hour_change_nothing(skew: timedelta) -> None:
    assert isinstance(step(settled(NOW + skew)), Wait)


def test_a_person_can_ask_for_a_new_ca() -> None:
    stored = replace(settled(), rotate=True)
    asked = step(stored)
    assert isinstance(asked, ReplaceAuthority)
    assert asked.previous == stored.trusted


def test_when_the_secret_of_the_ca_is_lost_pods_keep_trusting_what_serves() -> None:
    """The bundle beside the serving certificate remembers the CA, so the new one is introduced without a gap."""
    stored = settled()
    lost = replace(stored, authority=None, previous=())
    assert step(lost) == ReplaceAuthority(stored.trusted, "it is absent or damaged")


def test_when_the_key_of_the_ca_is_damaged_older_cas_stay_trusted_too() -> None:
    stored = in_overlap()
    assert step(replace(stored, authority=None)) == ReplaceAuthority(stored.trusted, "it is absent or damaged")


# -- the overlap -----------------------------------------------------------------------------------


def test_overlap_does_not_begin_before_every_pod_has_the_bundle() -> None:
    waiting = step(in_overlap(), lagging=True)
    assert isinstance(waiting, Wait)
    assert NOW < waiting.until <= NOW + MINUTE
    assert step(in_overlap(), lagging=False) == RecordDistribution(NOW)


def test_the_new_ca_issues_nothing_before_the_overlap_is_over() -> None:
    stored = in_overlap(NOW - 10 * MINUTE, distributed=NOW - SETTINGS.overlap + SETTINGS.overlap / 20)
    assert step(stored) == Wait(NOW + SETTINGS.overlap / 20)


def test_the_new_ca_issues_once_the_overlap_is_over() -> None:
    stored = in_overlap(NOW - 10 * MINUTE, distributed=NOW - SETTINGS.overlap)
    assert step(stored) == IssueServing("every pod trusts the new CA")


def test_overlap_with_a_pod_that_lacks_the_bundle_begins_again() -> None:
    made = NOW - SETTINGS.overlap
    assert step(in_overlap(made, distributed=made), lagging=True) == RecordDistribution(None)


def test_overlap_with_a_pod_that_resists_ends_after_three_overlaps() -> None:
    stored, now = in_overlap(NOW, distributed=NOW), NOW
    while not isinstance(taken := step(stored, now, lagging=True), IssueServing):
        if isinstance(taken, RecordDistribution):
            stored = replace(stored, distributed_time=taken.time)
        else:
            assert isinstance(taken, Wait)
            now = taken.until
    assert taken.why == "a pod still lacks the new CA after 0:15:00"
    assert now - NOW == 3 * SETTINGS.overlap


def test_new_ca_of_an_operator_that_was_stopped_is_distributed_for_an_overlap_before_its_use() -> None:
    made = NOW - DAY
    assert step(in_overlap(made), lagging=True) == RecordDistribution(NOW)
    begun = in_overlap(made, distributed=NOW)
    assert isinstance(step(begun, NOW + SETTINGS.overlap - MINUTE, lagging=True), Wait)
    assert isinstance(step(begun, NOW + SETTINGS.overlap, lagging=True), IssueServing)


def test_a_distribution_recorded_in_the_future_is_recorded_again() -> None:
    """The clock was set back: the overlap must not last as long as it was wrong."""
    assert step(in_overlap(distributed=NOW + DAY)) == RecordDistribution(NOW)


def test_a_pod_that_never_gets_the_bundle_does_not_keep_an_ending_certificate() -> None:
    stored = in_overlap(NOW - DAY)
    assert stored.serving
    end = stored.serving.certificate.not_valid_after_utc
    stored = replace(stored, distributed_time=end - SETTINGS.overlap - MINUTE)
    assert isinstance(step(stored, end - SETTINGS.overlap - MINUTE, lagging=True), Wait)
    ending = step(stored, end - SETTINGS.overlap, lagging=True)
    assert ending == IssueServing("it expires, although a pod may not trust the new CA yet")


# -- the serving certificate -----------------------------------------------------------------------


def test_the_first_serving_certificate_is_issued_at_once() -> None:
    stored = StoredCertificates(authority=new_authority(NOW, SETTINGS.ca_lifetime))
    assert step(stored) == IssueServing("it is absent or damaged")


def test_a_serving_certificate_is_renewed_by_the_same_ca_without_an_overlap() -> None:
    stored = settled(NOW - SETTINGS.serving_lifetime * 2 / 3)
    assert isinstance(step(stored, NOW - MINUTE), Wait)
    assert step(stored) == IssueServing("two thirds of its lifetime have passed")


def test_an_expired_serving_certificate_is_replaced() -> None:
    assert step(settled(NOW - SETTINGS.serving_lifetime)) == IssueServing("it is not valid now")


def test_a_serving_certificate_that_lacks_a_name_is_replaced() -> None:
    stored = settled()
    lacking = renewed(stored, NOW, NAMES[:1])
    assert step(lacking) == IssueServing("it lacks a DNS name")


def test_a_serving_certificate_that_no_trusted_ca_issued_is_replaced() -> None:
    stored = with_serving_of(new_authority(NOW, SETTINGS.ca_lifetime), settled(), NOW)
    assert step(stored) == IssueServing("no CA in the bundle issued it")


def test_a_serving_certificate_never_outlives_its_ca() -> None:
    authority = new_authority(NOW, DAY)
    serving = new_serving(authority, NAMES, NOW, SETTINGS.serving_lifetime)
    assert serving.certificate.not_valid_after_utc == authority.certificate.not_valid_after_utc


# -- older CAs -------------------------------------------------------------------------------------


def test_an_older_ca_stays_until_all_that_it_issued_is_over() -> None:
    stored = in_overlap(distributed=NOW)
    issued = renewed(stored, NOW + SETTINGS.overlap)
    again = renewed(stored, NOW + 15 * DAY)
    assert isinstance(step(issued, NOW + SETTINGS.overlap), Wait)
    assert isinstance(step(again, NOW + SETTINGS.serving_lifetime - MINUTE), Wait)
    assert step(again, NOW + SETTINGS.serving_lifetime) == DropPrevious(())


def test_the_ca_of_the_certificate_that_serves_is_never_dropped() -> None:
    stored = in_overlap(NOW)
    end = NOW + SETTINGS.serving_lifetime
    later = replace(with_serving_of_previous(stored, end - 5 * DAY), distributed_time=end)
    assert isinstance(step(later, end), Wait)


def with_serving_of_previous(stored: StoredCertificates, made: datetime) -> StoredCertificates:
    """As if the older CA had issued late, under settings with a longer life."""
    older = new_authority(NOW - 10 * DAY, SETTINGS.ca_lifetime)
    changed = replace(stored, previous=(older.certificate,))
    return with_serving_of(older, changed, made)


def test_an_expired_older_ca_goes() -> None:
    stored = settled()
    older = new_authority(NOW - SETTINGS.ca_lifetime, SETTINGS.ca_lifetime)
    with_older = replace(stored, previous=(older.certificate,))
    assert step(replace(with_older, bundle=with_older.pem)) == DropPrevious(())


def test_after_two_rotations_in_a_row_each_older_ca_goes_at_its_own_time() -> None:
    first, second, third = (new_authority(NOW + n * DAY, SETTINGS.ca_lifetime) for n in range(3))
    stored = StoredCertificates(authority=third, previous=(second.certificate, first.certificate))
    stored = with_serving_of(third, stored, NOW + 15 * DAY)
    assert isinstance(step(stored, NOW + 31 * DAY - MINUTE), Wait)
    assert step(stored, NOW + 31 * DAY) == DropPrevious((second.certificate,))


def test_the_bundle_is_kept_beside_the_serving_certificate() -> None:
    assert step(replace(settled(), bundle=b"")) == CopyBundle()


# -- what is stored --------------------------------------------------------------------------------


def test_a_pair_whose_key_belongs_to_another_certificate_is_none() -> None:
    one, other = new_authority(NOW, DAY), new_authority(NOW, DAY)
    assert KeyPair.from_pem(pem_of(one.certificate), one.key_pem()) is not None
    assert KeyPair.from_pem(pem_of(one.certificate), other.key_pem()) is None


@pytest.mark.parametrize(
    "damage", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_damaged_pair_is_none(damage: bytes) -> None:
    good = new_authority(NOW, DAY)
    assert KeyPair.from_pem(damage, good.key_pem()) is None
    assert KeyPair.from_pem(pem_of(good.certificate), damage) is None


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"dns_names": ()}, "dns_names must name"),
        ({"serving_lifetime": 200 * DAY}, "serving_lifetime must be at most a third"),
        ({"overlap": 6 * DAY}, "overlap must be at most a sixth"),
    ],
)
def test_settings_under_which_no_rotation_can_succeed_are_refused(changed: dict[str, timedelta], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **changed)
