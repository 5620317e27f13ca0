// swift-tools-version: 6.1
// A Swift program that depends on Tamis as anyone's would: without unsafe flags. scripts/test builds it against this
// repository by path, and against a tagged clone by URL (TAMIS_URL), where SwiftPM refuses unsafe flags.
import PackageDescription

let tamis: Package.Dependency =
  if let url = Context.environment["TAMIS_URL"] {
    .package(url: url, exact: "0.1.0")
  } else {
    .package(name: "tamis", path: "../..")
  }

let package = Package(
  name: "Consumer",
  dependencies: [tamis],
  targets: [
    .executableTarget(name: "Consumer", dependencies: [.product(name: "Tamis", package: "tamis")])
  ]
)
