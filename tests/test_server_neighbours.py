"""The OpenAI TTS plugins of LiveKit and Pipecat against our endpoint, in a process of their own.

NEIGHBOURS_PYTHON names an interpreter that has ``livekit-plugins-openai`` and ``pipecat-ai[openai]``; both bring a hundred packages, so
they are no dependencies of the tests.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_engine import FakeEngine
from tests.serving import running

LIMIT = 600.0
LIVEKIT = """
import asyncio, sys, aiohttp
from livekit.plugins import openai

async def main():
    async with aiohttp.ClientSession():
        tts = openai.TTS(base_url=sys.argv[1], api_key="none", voice="alloy", model="tts-1", response_format="mp3")
        async with tts.synthesize("Hello there.") as stream:
            print(sum([event.frame.samples_per_channel / event.frame.sample_rate async for event in stream]))

asyncio.run(main())
"""
PIPECAT = """
import asyncio, sys
from pipecat.frames.frames import TTSAudioRawFrame
from pipecat.services.openai.tts import OpenAITTSService

async def main():
    settings = OpenAITTSService.Settings(voice="alloy", model="gpt-4o-mini-tts")
    tts = OpenAITTSService(base_url=sys.argv[1], api_key="none", settings=settings)
    tts._sample_rate = 24000  # a pipeline's start would set it
    frames = [frame async for frame in tts.run_tts("Hello there.", "context")]
    print(sum(len(frame.audio) for frame in frames if isinstance(frame, TTSAudioRawFrame)) / 48000)

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("package", "program"), [("livekit.plugins.openai", LIVEKIT), ("pipecat.services.openai.tts", PIPECAT)])
async def test_plugin(voices: Path, package: str, program: str) -> None:
    python = os.environ.get("NEIGHBOURS_PYTHON", sys.executable)
    if subprocess.run([python, "-c", f"import {package}"], capture_output=True, timeout=LIMIT).returncode != 0:
        pytest.skip(f"{package} is not installed: NEIGHBOURS_PYTHON may name an interpreter that has it")
    async with running(voices, FakeEngine(frames=12)) as server:
        process = await asyncio.create_subprocess_exec(python, "-c", program, f"{server.http}/v1", stdout=subprocess.PIPE)
        heard, _ = await asyncio.wait_for(process.communicate(), LIMIT)
    assert 0.95 < float(heard.split()[-1]) < 1.1, "12 frames of 80 ms, and what MP3 adds"
