"""The browser that tests share; and no search for garbage among the modules that are imported before the first test."""

import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

gc.disable()


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    from .app_browser import chromium

    with chromium() as browser:
        yield browser


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()
