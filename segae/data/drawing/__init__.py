"""How drawn pets are drawn: breeds, bodies, fur, scenes. The door is segae.data.drawn_pets."""
