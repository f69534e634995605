"""A local page and a JSON endpoint that segment one image at a time."""

import io
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import lazy_loader
from PIL import Image

from segae._io import data_uri, logger, require_package
from segae._settings import takes_settings_of
from segae.applications.trust import TrustScore, compute_statistics
from segae.commands.evaluate import load_model
from segae.commands.predict import color_mask, describe_prediction
from segae.config import ServeConfig
from segae.data import UnreadableImage, read_formatted, resize_image
from segae.errors import SegaeError
from segae.evaluation import denormalize, normalize, overlay
from segae.models import Autoencoder, Segmenter, load_autoencoder
from segae.models.inference import make_network, predict_images

# an extra, which brings the two others
gradio, fastapi, uvicorn = (lazy_loader.load(name) for name in ("gradio", "fastapi", "uvicorn"))

_MAX_BYTES = 50_000_000
_SHOWN = 800  # pixels of the longer side of overlay and reconstruction
_PAGE = """<h1>Drop an image here, or choose one</h1><input type="file" accept="image/*"><pre></pre><div></div>"""
_SCRIPT = """
const [input, text, pictures] = ["input", "pre", "div"].map((name) => element.querySelector(name));
const show = async (file) => {
  text.textContent = "..."; pictures.replaceChildren();
  const reply = await fetch("predict", {method: "POST", body: file});
  const {pictures: found, error, ...values} = await reply.json().catch(() => ({error: `status ${reply.status}`}));
  text.textContent = error ?? JSON.stringify(values, null, 2);
  for (const [alt, src] of Object.entries(found ?? {}))
    pictures.append(Object.assign(new Image(), {alt, title: alt, src, style: "max-width: 49%; display: inline"}));
};
input.onchange = () => show(input.files[0]);
document.ondragover = (event) => event.preventDefault();  // else the browser would open a dropped image itself
document.ondrop = (event) => { event.preventDefault(); show(event.dataTransfer.files[0]); };
"""


@takes_settings_of(ServeConfig)
def serve(config: ServeConfig) -> None:
    """Serve a page, and JSON at ``/predict``, until interrupted; the settings are those of `ServeConfig`.

    Raises:
        SegaeError: a bad model file, an autoencoder that predicts no image, or a port that is taken.

    Example:
        >>> serve("runs/finetune/model.safetensors")  # doctest: +SKIP
    """
    require_package("gradio", "serve")
    model = load_model(config.model, config.device)
    autoencoder = load_autoencoder(config.autoencoder) if config.autoencoder else None
    try:
        listening = socket.create_server((config.host, config.port))
    except OSError as error:
        raise SegaeError(f"port must be free on host {config.host}, got {config.port}: {error.strerror}") from error
    with listening:
        trust = TrustScore.find(config.model, model)
        app = make_app(model, autoencoder, trust, max_pixels=config.max_pixels)
        logger.info("page: http://%s:%d  JSON: post an image to /predict  end: Ctrl-C", config.host, config.port)
        with suppress(KeyboardInterrupt):  # which is how it ends
            uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listening])


def make_app(
    model: Segmenter,
    autoencoder: Autoencoder | None = None,
    trust: TrustScore | None = None,
    *,
    max_pixels: int,
    max_bytes: int = _MAX_BYTES,
) -> Any:
    """Make the FastAPI application of `serve`; what is no image, or has more pixels or bytes, gets a 4xx answer."""
    network, info, lock, device = make_network(model), model.info, threading.Lock(), next(model.parameters()).device
    if autoencoder is not None and autoencoder.to(device).info.out_channels != 3:
        raise SegaeError(f"autoencoder must predict 3 channels, got one of {autoencoder.info.out_channels}")

    def answer(data: bytes) -> dict[str, Any]:
        with lock:  # one image at a time: memory does not grow with the number of visitors
            image = read_formatted(Path("upload"), info.format, max_pixels=max_pixels, data=data)
            (found,) = predict_images(network, [image], image_size=info.format)
            pictures = {"overlay": Image.fromarray(overlay(image, found.mask, info.palette))}
            if autoencoder is not None:
                about = autoencoder.info.encoder
                square = normalize(resize_image(image, about.format)[None], about.mean, about.std, device)
                pixels = denormalize(autoencoder.reconstruct(square)[0], about.mean, about.std)
                pictures["reconstruction"] = Image.fromarray(pixels).resize(image.shape[1::-1])
            for picture in pictures.values():
                picture.thumbnail((_SHOWN, _SHOWN))
            pictures["mask"] = color_mask(found.mask, info)
            shown = {name: _encode(picture) for name, picture in pictures.items()}
            small = resize_image(image, info.format)[None]
            score = None if trust is None else float(trust.scores(compute_statistics(model, small))[0])
            return {**describe_prediction(found, info, score), "pictures": shown}

    async def respond(request: Any) -> Any:
        data, count = bytearray(), 0
        async for part in request.stream():
            count += len(part)
            data += part if count <= max_bytes else b""
        reply = fastapi.responses.JSONResponse
        if count > max_bytes:
            return reply({"error": f"the image has {count} bytes, more than {max_bytes}"}, 413)
        try:
            return reply(await fastapi.concurrency.run_in_threadpool(answer, bytes(data)))
        except UnreadableImage as error:
            return reply({"error": f"the image cannot be read: {error.reason}"}, 422)

    app = fastapi.FastAPI(openapi_url=None)  # the pages about it load scripts from elsewhere
    app.add_route("/predict", respond, methods=["POST"])
    # events of a mounted gradio page open any file or address that a request names: there are none, and nothing below
    # this path answers; the page posts to /predict, where no name is taken
    app.mount("/gradio_api", fastapi.responses.Response(status_code=403))
    with gradio.Blocks(analytics_enabled=False, title="segae") as page:
        gradio.HTML(_PAGE, js_on_load=_SCRIPT)
    theme = gradio.themes.Base(font=["sans-serif"], font_mono=["monospace"])  # others load fonts from elsewhere
    return gradio.mount_gradio_app(app, page, path="/", theme=theme, footer_links=[])


def _encode(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return data_uri("image/png", file.getvalue())
