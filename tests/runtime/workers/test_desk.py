"""The inside of an engine process, here in this one: what it says while it has nothing to do, and when it hangs."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.errors import EngineHungError
from ortserve.runtime.request import FinishReason
from ortserve.runtime.workers.channel import Channel
from ortserve.runtime.workers.crossing import arrived
from ortserve.runtime.workers.messages import Alive, Ended, Ready, Stepped, Submit, decode_report, encode
from ortserve.runtime.workers.process import _Desk
from tests.runtime.driving import Gate, greedy
from tests.runtime.synthetic import SyntheticModel
from tests.waiting import PATIENCE_S


def test_a_process_whose_engine_hangs_tells_its_requests_and_ends(synthetic: SyntheticModel) -> None:
    plan = synthetic.plan(EngineConfig(max_rows=2, max_context=256))
    driver = Driver(synthetic.engine(plan), synthetic.manifest, plan, step_limit_s=0.1)
    gate = Gate(driver)
    own, other = socket.socketpair()
    server = Channel(own)
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(_Desk(Channel(other), driver).run)
        server.send(encode(Submit(greedy("stuck", 1))))
        reports = []
        while (message := server.receive()) is not None:
            reports.append(decode_report(message))
        assert ending.result(PATIENCE_S) == 1  # the process's exit status: nothing waits for the engine's thread
    assert isinstance(reports[0], Ready)
    (last,) = [delta for report in reports if isinstance(report, Stepped) for delta in report.deltas]
    assert (last.request_id, last.finish, last.is_lost) == ("stuck", FinishReason.ERROR, True)
    ended = reports[-1]
    assert isinstance(ended, Ended)
    assert ended.error is not None
    error = arrived(ended.error)
    assert isinstance(error, EngineHungError)
    assert "a step has not ended for" in str(error)
    gate.open()
    driver._thread.join(PATIENCE_S)
    assert driver._thread not in threading.enumerate()
    server.close()


def test_a_process_that_has_nothing_to_do_says_that_it_lives(synthetic: SyntheticModel) -> None:
    plan = synthetic.plan(EngineConfig(max_rows=2, max_context=256))
    own, other = socket.socketpair()
    server, driver = Channel(own), Driver(synthetic.engine(plan), synthetic.manifest, plan)
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(_Desk(Channel(other), driver, alive_every_s=0.01).run)
        server.wait_at_most(PATIENCE_S)
        reports = [decode_report(server.receive() or b"") for _ in range(6)]
        server.close()
        assert ending.result(PATIENCE_S) == 0
    assert reports[0] == Ready(plan)
    assert Alive() in reports[1:]
    assert all(isinstance(report, Alive | Stepped) for report in reports[1:])
    assert sum(isinstance(report, Stepped) for report in reports) <= 1  # nothing has changed since
