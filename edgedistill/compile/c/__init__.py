"""The C engine: compiles a bundle's student and front end into a library with the model inside."""
