"""Takes over folders that other exporters made: a manifest beside their files, and what can be proved of them."""
