"""The built pages: links, entries, search, and no overflow on a desk or a phone.

sphinx-build -W -b html docs OUT && ROBUSTOPS_HTML=OUT pytest -n 0 tests/test_docs_html.py
"""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from robustops.testing import OPS

BUILT = os.environ.get("ROBUSTOPS_HTML", "")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
    --disable-background-networking --disable-component-update --hide-scrollbars""".split()

pytestmark = pytest.mark.skipif(
    not BUILT, reason="needs built pages: set ROBUSTOPS_HTML to the folder that sphinx-build wrote"
)
needs_browser = pytest.mark.skipif(not BROWSER, reason="needs chromium, which is not here")


class Page(HTMLParser):
    """The ids of a page, and what it links to or loads."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        self.links += [given["href"]] if tag == "a" and given.get("href") else []
        loaded = given.get("src") or (given.get("href") if tag == "link" else None)
        self.loads += [loaded] if loaded else []


@pytest.fixture(scope="module")
def pages():
    root = Path(BUILT)
    found = {path.relative_to(root).as_posix(): Page(path) for path in root.rglob("*.html")}
    assert len(found) > 20
    return found


def test_internal_links_lead_somewhere(pages):
    dead, checked = [], 0
    for name, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            here = Path(BUILT) / name
            target = (here.parent / unquote(parts.path)).resolve() if parts.path else here
            other = pages.get(os.path.relpath(target, Path(BUILT).resolve()))
            missing = other is not None and parts.fragment and parts.fragment not in other.ids
            if not target.exists() or (missing and "search" not in name):
                dead.append(f"{name}: {link}")
            checked += 1
    assert checked > 1000
    assert not dead


def test_pages_load_nothing_from_elsewhere(pages):
    assert not {load for page in pages.values() for load in page.loads if "//" in load}


def test_every_name_of_the_reference_has_an_entry(pages):
    """The tables of the reference are made from the modules; each name in them must be a link."""
    data = (Path(BUILT) / "objects.inv").read_bytes().split(b"zlib.\n", 1)[1]
    known = {line.split()[0] for line in zlib.decompress(data).decode().splitlines()}
    text = (Path(BUILT) / "api.html").read_text()
    rows = re.findall(r"<tr[^>]*><td><p>(.*?)</p></td>", text, re.DOTALL)
    assert len(rows) > len(OPS) + 80
    for row in rows:
        linked = re.search(r'href="[^"]*#([\w.]+)"', row)
        assert linked, row
        assert linked[1] in known


# Loads each page in frames as wide as a desk and a phone, and writes down what does not fit.
MEASURE = """<body><pre id="found">unfinished</pre><script>
(async () => {
  const found = [];
  for (const name of %s) for (const width of [1280, 390]) {
    const frame = document.createElement("iframe");
    frame.style = `width: ${width}px; height: 900px; border: 0`;
    frame.src = name;
    const loaded = new Promise((done) => { frame.onload = done; });
    document.body.append(frame);
    await loaded;
    const page = frame.contentDocument;
    const wide = page.documentElement.scrollWidth;
    if (wide > width) found.push(`${name} is ${wide} wide at ${width}`);
    for (const image of page.images)
      if (!image.naturalWidth) found.push(`${name}: ${image.src} is broken`);
    frame.remove();
  }
  document.getElementById("found").textContent = JSON.stringify(found);
})();
</script></body>"""


@pytest.fixture(scope="module")
def address(pages):
    measure = MEASURE % json.dumps(sorted(pages))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

        def do_GET(self):
            if self.path != "/measure":
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(measure.encode())

    handler = functools.partial(Handler, directory=BUILT)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def dom(url, profile):
    """What a page is after its scripts ran."""
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=60000"]
    done = subprocess.run(
        [*command, "--dump-dom", url], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_browser
def test_search_finds_an_op(address, tmp_path):
    found = dom(f"{address}/search.html?q=safe_log", tmp_path)
    links = re.findall(r'<a href="([^"]*)"', found.split('id="search-results"')[1])
    assert any(link.split("?")[0].endswith("ops.html#robustops.safe_log") for link in links), links


@needs_browser
def test_pages_fit_a_desk_and_a_phone(address, tmp_path):
    found = re.search(r'<pre id="found">(.*?)</pre>', dom(f"{address}/measure", tmp_path))
    assert found is not None
    assert json.loads(found[1]) == []
