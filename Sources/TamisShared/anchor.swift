// Carries the link flags of libtamis.so and nothing else (see Package.swift).
@_exported import Tamis
