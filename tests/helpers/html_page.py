"""HTML parser for the demo report."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags and texts of an HTML page, in document order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def values(self, tag: str, name: str) -> list[str]:
        """Values of an attribute over all tags of this name; missing ones are empty."""
        return [attrs.get(name) or "" for other, attrs in self.tags if other == tag]

    def words(self) -> str:
        """All text, with whitespace collapsed."""
        return " ".join(" ".join(self.texts).split())
