"""Runs mvp-edge on other machines through ssh: ``host`` connects, ``bench`` and ``timing`` measure."""
