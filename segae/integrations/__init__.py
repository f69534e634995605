"""segae in other libraries' terms; each module needs the library that it is named after."""
