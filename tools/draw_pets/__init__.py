"""Draw cats and dogs in the layout of Oxford-IIIT Pets: the generator of data/drawn-pets."""
