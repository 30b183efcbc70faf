"""Captions and alt texts that a figure carries, told to the renderer."""

import nbformat

TOLD = ("alt", "caption")  # what a chapter says of a picture, in the metadata of the output


def told(metadata: dict) -> dict[str, str]:
    """Alt text and caption of an output's picture."""
    return {key: value for key, value in metadata.get("image/png", {}).items() if key in TOLD}


def with_captions(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with alt texts and captions where MyST-NB looks for them: in the cells."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            said = told(output.get("metadata", {}))
            if said:
                cell.metadata["mystnb"] = {
                    "image": {"alt": said.get("alt", "")},
                    "figure": {"caption": said.get("caption", "")},
                }
    return notebook
