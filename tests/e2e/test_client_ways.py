"""The Python client's own ways in, against a real pair: loaded clips, embeddings from files, another's processor."""

import asyncio
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PilImage

from tessera_client import (
    AsyncClient,
    Client,
    Image,
    Item,
    Tensor,
    Video,
    encode_image_url,
    encode_video_url,
    items_from_processor,
    load_embeddings,
    load_image,
    load_video,
    save_embeddings,
)
from tests.e2e.harness import Flags, Pair, Pairs
from tests.parity.cases import FRAMES, SMALL, TALL
from tests.torchvision_stub import load_hf_processor
from worker.models.base import EncoderInput
from worker.models.loader import load_encoders

ASK = "What is this?"
OPTIONS = {"max_tokens": 6, "temperature": 0.0}


@pytest.fixture
def pair(pairs: Pairs, tiny: Callable[[str], Path]) -> Pair:
    """A pair as it starts by itself."""
    return pairs.get(Flags(tiny("5.x")))


@pytest.fixture
def client(pair: Pair) -> Client:
    """A client of it."""
    return Client(pair.gateway.address, timeout=30)


def answer(client: Client, *parts: object) -> tuple[int, ...]:
    """The tokens of a greedy answer."""
    return tuple(client.chat([*parts, ASK], **OPTIONS).choices[0].token_ids)


def hashes(client: Client, *parts: object) -> tuple[bytes, ...]:
    """The content hashes of media."""
    return tuple(report.content_hash for report in client.prepare([*parts, ASK]).media)


def test_a_picture_is_one_however_it_is_held(client: Client, tmp_path: Path) -> None:
    """Bytes, path, PIL image, array and data URL are the same medium."""
    (tmp_path / "a.png").write_bytes(SMALL.file)
    image = load_image(SMALL.file)
    (expected,) = hashes(client, Image(SMALL.file))
    for source in (tmp_path / "a.png", image, np.asarray(image), encode_image_url(SMALL.file)):
        assert hashes(client, Image(source)) == (expected,)


def test_a_clip_s_frames_keep_their_times(client: Client) -> None:
    """A list with times, a loaded clip, and a data URL that states its rate give the same times."""
    times = [index / 4 for index in range(len(FRAMES.frames))]
    listed = client.prepare([Video(FRAMES.frames, timestamps=times), ASK])
    loaded = load_video(list(FRAMES.frames))
    timed = client.prepare([Video(loaded, timestamps=times), ASK])
    assert timed.media[0].content_hash == listed.media[0].content_hash
    assert timed.token_ids == listed.token_ids
    sampled = client.prepare([Video(FRAMES.frames, source_fps=4), ASK])
    url = encode_video_url(loaded).replace("video/jpeg;", "video/jpeg;fps=4;")
    assert client.prepare([Video(url), ASK]).media[0].sampling == sampled.media[0].sampling
    stated = client.prepare([Video(encode_video_url(loaded), source_fps=4), ASK])
    assert stated.media[0].sampling == sampled.media[0].sampling
    unstated = client.prepare([Video(encode_video_url(loaded)), ASK])
    assert unstated.media[0].sampling is not None
    assert unstated.media[0].sampling.source_fps == 2.0


def embeddings_of(model: Path, prepared: Item) -> Item:
    """What the encoder, run by itself, makes of prepared pixels."""
    (encoder,) = load_encoders(model)
    pixels = torch.from_numpy(np.array(prepared.array))
    (output,) = encoder([EncoderInput(prepared.modality, "pixels_u8", pixels, prepared.grid_thw)])
    return Item(
        modality=prepared.modality,
        payload_kind="embeddings",
        array=output.embeddings,
        grid_thw=prepared.grid_thw,
        timestamps=prepared.timestamps,
        side_arrays={} if output.deepstack is None else {"deepstack": output.deepstack},
    )


@pytest.mark.parametrize("modality", ["image", "video"])
def test_embeddings_from_files_stand_beside_computed_items(
    client: Client, pair: Pair, tmp_path: Path, modality: str
) -> None:
    """A safetensors file with side tensors, and an npy file, answer as the pixels do, beside another of their kind."""
    computed, other = (
        (Image(SMALL.file), Image(TALL.file))
        if modality == "image"
        else (Video(FRAMES.frames, source_fps=2), Video(FRAMES.frames[::-1], source_fps=2))
    )
    expected = answer(client, computed, other)
    prepared = client.prepare([computed, ASK], include_tensors=True)
    item = embeddings_of(pair.flags.model, prepared.items[0])
    save_embeddings(tmp_path / "a.safetensors", item)
    np.save(tmp_path / "a.npy", Tensor.from_array(item.array).to_array())
    from_npy = load_embeddings(
        tmp_path / "a.npy",
        modality=modality,
        grid_thw=item.grid_thw,
        timestamps=item.timestamps,
        side_arrays=item.side_arrays,
    )
    for loaded in (load_embeddings(tmp_path / "a.safetensors"), from_npy):
        assert answer(client, loaded, other) == expected

    async def ask() -> tuple[int, ...]:
        async with AsyncClient(pair.gateway.address, timeout=30) as asynchronous:
            loaded = await asyncio.to_thread(load_embeddings, tmp_path / "a.safetensors")
            return tuple((await asynchronous.chat([loaded, other, ASK], **OPTIONS)).choices[0].token_ids)

    assert asyncio.run(ask()) == expected


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # transformers' own, for GLM
@pytest.mark.parametrize("family", ["5.x", "glm4v"])
def test_another_s_processor_answers_alike(pairs: Pairs, tiny: Callable[[str], Path], family: str) -> None:
    """What transformers' processor returns, ids and patches, is the conversation; also with one placeholder each."""
    processor = load_hf_processor(tiny(family))
    client = Client(pairs.get(Flags(tiny(family))).gateway.address, timeout=30)
    pictures = [PilImage.open(io.BytesIO(file)) for file in (SMALL.file, TALL.file)]
    clip = np.stack([np.asarray(PilImage.open(io.BytesIO(frame))) for frame in FRAMES.frames])
    content = [{"type": "image"}, {"type": "video"}, {"type": "image"}, {"type": "text", "text": ASK}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    metadata = [{"total_num_frames": len(clip), "fps": 2.0, "duration": len(clip) / 2}]
    outputs = processor(
        text=[prompt],
        images=pictures,
        videos=[clip],
        video_metadata=metadata,
        return_metadata=True,
        return_tensors="pt",
    )
    expected = answer(client, Image(SMALL.file), Video(FRAMES.frames, source_fps=2), Image(TALL.file))
    items = items_from_processor(outputs)
    assert [item.modality for item in items] == ["image", "video", "image"]
    expanded = client.generate(outputs["input_ids"][0].tolist(), items=items, **OPTIONS)
    assert tuple(expanded.choices[0].token_ids) == expected
    short = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    bare = [Item(i.modality, "patches", i.array, grid_thw=i.grid_thw, timestamps=i.timestamps) for i in items]
    again = client.generate(short, items=bare, **OPTIONS)
    assert tuple(again.choices[0].token_ids) == expected
