"""Models for other libraries and runtimes; segae.export is the function that writes them."""
