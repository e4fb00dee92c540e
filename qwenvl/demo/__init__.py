"""The main job at CPU size: ask the shipped model, train one from scratch, score both, write a page about it."""
