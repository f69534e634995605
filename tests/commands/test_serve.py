"""``segae serve``: what an image gives, what is refused, that no file can be reached, and the page in a browser."""

from __future__ import annotations

import base64
import io
import shutil
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import sync_playwright
from starlette.testclient import TestClient

import segae
from segae.applications.trust import TrustScore
from segae.commands.serve import make_app
from segae.models import build_autoencoder, save_autoencoder
from tests.fabricate import draw

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LIMITS = {"max_pixels": 1_000_000, "max_bytes": 300_000}


def encode(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


def decode(url: str) -> Image.Image:
    assert url.startswith("data:image/png;base64,")
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


IMAGE = draw(np.random.default_rng(0), 96)[0][:70]


@pytest.fixture
def model(make_segmenter: Callable[..., Path]) -> segae.Segmenter:
    return segae.load_segmenter(make_segmenter())


@pytest.fixture
def client(model: segae.Segmenter) -> Iterator[TestClient]:
    with TestClient(make_app(model, **LIMITS)) as made:
        yield made


def test_an_image_gives_its_mask_and_values(client: TestClient, model: segae.Segmenter) -> None:
    reply = client.post("/predict", content=encode(IMAGE))
    found, expected = reply.json(), model.predict(IMAGE)
    assert reply.status_code == 200
    assert np.array_equal(np.asarray(decode(found["pictures"]["mask"])), expected)
    assert found["share_background"] == pytest.approx((expected == 1).mean())
    blend = (IMAGE + np.array(model.info.palette)[expected]) / 2
    assert np.abs(np.asarray(decode(found["pictures"]["overlay"])) - blend).max() <= 1
    assert 1 / 3 < found["mean_confidence"] <= 1
    assert "reconstruction" not in found["pictures"]


def test_an_autoencoder_adds_its_reconstruction(model: segae.Segmenter, tmp_path: Path) -> None:
    encoder = segae.create_encoder("test_resnet")
    autoencoder = build_autoencoder(encoder)
    with TestClient(make_app(model, autoencoder, **LIMITS)) as client:
        found = client.post("/predict", content=encode(IMAGE)).json()
    assert decode(found["pictures"]["reconstruction"]).size == (96, 70)
    with pytest.raises(segae.SegaeError, match="autoencoder must predict 3 channels, got .*5"):
        make_app(model, build_autoencoder(encoder, out_channels=5), **LIMITS)
    path = save_autoencoder(autoencoder, tmp_path / "autoencoder.safetensors")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(segae.SegaeError, match="port must be free"):
        segae.serve(
            tmp_path / "model" / "model.safetensors", autoencoder=path, port=taken.getsockname()[1], device="cpu"
        )


def test_a_trust_score_is_shown_beside_the_values(model: segae.Segmenter) -> None:
    known = np.stack([draw(np.random.default_rng(seed), 64)[0] for seed in range(30)])
    trust = TrustScore.fit(model, known[:6], known[6:])
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with TestClient(make_app(model, None, trust, **LIMITS)) as client:
        near, far = (client.post("/predict", content=encode(image)).json() for image in (known[0], noise))
    assert far["trust"] == pytest.approx(1 / 25)
    assert near["trust"] > 0.5  # a training image


def make_png(width: int, height: int) -> bytes:
    parts = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(99)))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


UPLOADS = {
    "text": (b"hello", 422, "no known image format"),
    "nothing": (b"", 422, "empty"),
    "half": (encode(IMAGE)[:2000], 422, "truncated"),
    "drawing": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "no known image format"),
    "bomb": (make_png(60_000, 60_000), 422, "bomb"),
    "100 megapixels": (make_png(10_000, 10_000), 422, "10000 x 10000 pixels are more than max_pixels"),
    "megabytes": (bytes(400_000), 413, "400000 bytes, more than 300000"),
}


def test_other_uploads_are_refused_and_the_service_stays_up(client: TestClient) -> None:
    for content, code, message in UPLOADS.values():
        reply = client.post("/predict", content=content)
        assert (reply.status_code, list(reply.json())) == (code, ["error"])
        assert message in reply.json()["error"]
    assert client.post("/predict", content=encode(IMAGE)).status_code == 200


def test_no_path_or_address_in_a_request_is_opened(client: TestClient, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(encode(IMAGE))
    up = "../" * 12
    for path in (secret, f"{up}{secret}", f"file://{secret}", "http://127.0.0.1:9/a.png", "/etc/passwd"):
        for place in (
            "gradio_api/file=",
            "gradio_api/file/",
            "gradio_api/proxy=",
            "file=",
            "static/",
            "assets/",
            "theme/",
        ):
            for text in (str(path), str(path).replace("/", "%2f")):
                reply = client.get(f"/{place}{text}")
                assert reply.status_code >= 400, (place, text)
                assert secret.read_bytes() not in reply.content
                assert b"root:" not in reply.content
        named = {"path": str(path), "url": str(path), "meta": {"_type": "gradio.FileData"}}
        call = {"data": [named], "fn_index": 0, "session_hash": "a", "event_data": None, "trigger_id": None}
        for place in ("queue/join", "run/predict", "api/predict", "call/predict", "component_server", "upload"):
            assert client.post(f"/gradio_api/{place}", json=call).status_code == 403
        assert client.post("/predict", json=named).status_code == 422
        assert client.post(f"/predict?path={path}", content=b"").status_code == 422


@pytest.fixture
def address(model: segae.Segmenter) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(make_app(model, **LIMITS), log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


DROP = """([content, name]) => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(atob(content), (one) => one.charCodeAt(0))], name));
  const event = new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
  document.body.dispatchEvent(event);
  return event.defaultPrevented;
}"""  # what a browser does with a file that is dropped anywhere on the page


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_the_page_shows_what_is_found_and_why_not(address: str, model: segae.Segmenter) -> None:
    asked: list[str] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        field: Any = page.wait_for_selector("input[type=file]")

        def drop(content: bytes, name: str) -> None:
            assert page.evaluate(DROP, [base64.b64encode(content).decode(), name])

        drop(encode(IMAGE), "cat.png")
        mask = page.wait_for_selector("img[alt=mask]").get_attribute("src")
        assert np.array_equal(np.asarray(decode(mask)), model.predict(IMAGE))
        assert page.wait_for_selector("img[alt=overlay]").evaluate("image => image.naturalWidth") == 96
        assert "share_background" in page.inner_text("pre")
        for name in ("text", "megabytes", "bomb"):
            drop(UPLOADS[name][0], f"{name}.png")
            page.wait_for_function(
                "text => document.querySelector('pre').textContent.includes(text)", arg=UPLOADS[name][2]
            )
            assert page.query_selector("img[alt=mask]") is None
        field.set_input_files({"name": "passwd", "mimeType": "image/png", "buffer": encode(IMAGE)})
        page.wait_for_selector("img[alt=mask]")
        drop(UPLOADS["text"][0], "text.png")
        page.wait_for_selector("img[alt=mask]", state="detached")
        drop(encode(IMAGE), "../../etc/passwd")
        page.wait_for_selector("img[alt=mask]")
        browser.close()
    assert {url.startswith((address, "data:")) for url in asked} == {True}
