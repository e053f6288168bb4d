import pytest

from poolrt.topology.sources.nvml_counters import nvlink_counters

SUM, ALL = 138, 0xFFFF_FFFF


def library(fake_nvml, answer, **answers):
    """NVML whose field values are `answer(field, link)`; None is a value that the card does not have."""
    nvml = fake_nvml(DeviceGetHandleByUUID=lambda uuid: {"GPU-aa": 0}[uuid], **answers)
    nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX = SUM
    nvml.NVML_FI_DEV_NVLINK_COUNT_XMIT_BYTES = 202
    nvml.NVML_NVLINK_MAX_LINKS = 4

    def values(handle, wanted):
        nvml.fields = {number: count for number, link in wanted if (count := answer(number, link)) is not None}
        return [nvml._field(number) for number, _ in wanted]

    def value_by_value(handle, wanted):
        return [value for pair in wanted for value in values(handle, [pair])]

    nvml.answers["DeviceGetFieldValues"] = value_by_value
    return nvml


@pytest.mark.parametrize(
    ("answer", "nbytes"),
    [
        (lambda field, link: 10 if (field, link) == (SUM, ALL) else None, 10 * 1024),
        (lambda field, link: 10 + link if field == SUM and link < 3 else None, 33 * 1024),
        (lambda field, link: 100 if field == 202 and link < 2 else None, 200),
        (lambda field, link: None, None),
    ],
    ids=["sum of all links", "link by link", "the newest cards", "none"],
)
def test_sent_bytes_are_read_as_the_card_counts_them(fake_nvml, answer, nbytes):
    nvml = library(fake_nvml, answer)
    with nvlink_counters(nvml) as counters:
        assert counters.sent_nbytes("GPU-aa") == nbytes
    assert nvml.opened == 0


def test_where_nvml_does_not_answer_there_are_no_counters(fake_nvml):
    with nvlink_counters(fake_nvml(Init=9)) as counters:
        assert counters is None


def test_a_card_that_nvml_does_not_know_has_none(fake_nvml):
    with nvlink_counters(fake_nvml()) as counters:
        assert counters.sent_nbytes("GPU-zz") is None
