"""Controller of a second kind on `reattach.runtime`: writes each Greeting to a ConfigMap."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

from controlplane import ControlPlane
from reattach.api.objects import ObjectMeta, Shape
from reattach.cluster import Cluster, NotFoundError, paths
from reattach.runtime.controller import Controller
from reattach.runtime.event_recorder import EventRecorder
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.object_store import ObjectStore
from reattach.runtime.rate_limiter import RateLimiter
from reattach.runtime.resource import Resource
from reattach.runtime.supervision import keep_running
from reattach.runtime.unreadable import UnreadableObjects
from reattach.runtime.workqueue import Key
from reattach.runtime.writer import Writer

GREETINGS = Resource(group="example.com", version="v1", kind="Greeting", plural="greetings")
CRD = """{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: greetings.example.com},
spec: {group: example.com, scope: Namespaced, names: {kind: Greeting, plural: greetings}, versions: [{name: v1, served: true,
storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]}}"""


class Greeting(Shape, frozen=True):
    text: str
    metadata: ObjectMeta = ObjectMeta()


async def run_controller(cluster: Cluster, namespace: str) -> None:
    metrics = OperatorMetrics()
    controller = Controller("Greeting", cluster, metrics, UnreadableObjects(metrics), [namespace], workers=2)
    greetings: ObjectStore[Greeting] = ObjectStore(lambda g: Key(namespace, g.metadata.name), controller.queue.add)
    writer = Writer(cluster, RateLimiter(per_second=100, at_once=8), lambda: True, metrics)
    recorder = EventRecorder(writer, GREETINGS, metrics, controller="example.com/greeter", instance="test")
    controller.watch(GREETINGS.path, Greeting, greetings)

    async def reconcile(key: Key) -> None:
        text = "".join(greeting.text for greeting in greetings.by_key(key))  # empty after the deletion
        body = {"metadata": {"name": key.name}, "data": {"text": text}}
        try:
            await writer.merge_patch(paths.configmaps(*key), body)
        except NotFoundError:
            await writer.create(paths.configmaps(key.namespace), body)
        for greeting in greetings.by_key(key):
            recorder.emit(greeting.metadata, SimpleNamespace(reason="Greeted", note=text, warning=False))

    async with asyncio.TaskGroup() as tasks:

        def start(name: str, loop: Callable[[], Awaitable[None]]) -> None:
            tasks.create_task(keep_running(name, loop, metrics))

        start("events", recorder.run)
        await controller.start_reflectors(start)
        controller.start_workers(start, reconcile)


async def test_second_kind_is_reconciled_after_create_change_and_delete(private_control_plane: ControlPlane) -> None:
    private_control_plane.apply(CRD)
    private_control_plane.kubectl("wait", "--for=condition=Established", "crd/greetings.example.com")
    namespace = private_control_plane.create_namespace()
    async with await Cluster.connect(str(private_control_plane.kubeconfig())) as cluster, asyncio.timeout(60):

        async def wait_for(text: str, path: str = paths.configmaps(namespace)) -> None:
            while text not in (await cluster.list(path)).decode():  # noqa: ASYNC110 -- another process changes it
                await asyncio.sleep(0.05)

        running = asyncio.create_task(run_controller(cluster, namespace))
        body = {"apiVersion": GREETINGS.api_version, "kind": "Greeting", "metadata": {"name": "hello"}}
        await cluster.create(GREETINGS.path(namespace), {**body, "text": "hi"})
        await wait_for('"text":"hi"')
        await cluster.merge_patch(GREETINGS.path(namespace, "hello"), {"text": "bye"})
        await wait_for('"text":"bye"')
        await cluster.delete(GREETINGS.path(namespace, "hello"))
        await wait_for('"text":""')
        await wait_for('"note":"bye"', paths.events(namespace))
        running.cancel()
