"""Requests generated from what the server says of itself: whatever they are, no answer is a 5xx."""

import os

import schemathesis
from hypothesis import HealthCheck, settings
from served import KEY, URL

schema = schemathesis.openapi.from_url(f"{URL}/openapi.json")
EXAMPLES = int(os.environ.get("ORTSERVE_EXAMPLES", "25"))  # per operation


@schema.parametrize()
@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_server_error(case):
    response = case.call(headers={"authorization": f"Bearer {KEY}"}, timeout=60)
    assert response.status_code < 500, f"{case.as_curl_command()}\n{response.text[:500]}"
