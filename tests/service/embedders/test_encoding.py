"""Base64 in every form in which clients write it, for vectors and images alike."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.embedders.encoding import decode_base64
from tests.service.http_client import VECTOR, Service, failed, float32, paths

FORMS: dict[str, Callable[[bytes], str]] = {
    "as it is": lambda data: base64.b64encode(data).decode(),
    "unpadded": lambda data: base64.b64encode(data).decode().rstrip("="),
    "URL-safe": lambda data: base64.urlsafe_b64encode(data).decode(),
    "URL-safe and unpadded": lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
    "wrapped": lambda data: base64.encodebytes(data).decode(),
    "wrapped by Windows": lambda data: "\r\n".join(textwrap.wrap(base64.b64encode(data).decode(), 76)),
    "with a line feed": lambda data: base64.b64encode(data).decode() + "\n",
}


@given(data=st.binary(max_size=200), form=st.sampled_from(sorted(FORMS)))
def test_every_form_stands_for_the_same_bytes(data: bytes, form: str) -> None:
    assert decode_base64(FORMS[form](data)) == data


@pytest.mark.parametrize("text", ["A", "AAAAA", "AA*A", "größe", "AAAA=AAAA", "-+_/\x00"])
def test_what_is_no_base64_says_what_to_send(text: str) -> None:
    with pytest.raises(ValueError, match="is not base64: send A-Z a-z 0-9"):
        decode_base64(text)


async def test_a_vector_may_be_sent_in_each_of_them(service: Service) -> None:
    await service.create(body=VECTOR)
    data = base64.b64decode(float32([0.25, -0.5, 2.0]))
    for i, form in enumerate(FORMS.values()):
        await service.decide(body={"id": f"d{i}", "prompt": {"vector": form(data)}})
    features = {event["features"] for event in await service.log() if event["event"] == "decided"}
    assert len(features) == 1
    response = await service.post("/v1/bandits/b/decisions", {"prompt": {"vector": "not base64!"}})
    assert failed(response) == (422, "invalid_request")
    assert paths(response) == ["prompt.vector"]
