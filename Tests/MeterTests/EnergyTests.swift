// The energy reader on a made-up powercap directory.
import Glibc
import TamisMeter
import Testing

private final class PowercapDirectory {
  let path: String
  private var files: [String] = []
  private var folders: [String] = []

  init() throws {
    var template = Array("/tmp/tamis-powercap-XXXXXX".utf8CString)
    path = String(cString: try #require(mkdtemp(&template)))
  }

  func set(_ domain: String, name: String? = nil, range: UInt64? = nil, energy: UInt64? = nil) throws {
    let folder = path + "/" + domain
    if mkdir(folder, 0o700) == 0 { folders.append(folder) }
    if let name { try write(folder + "/name", name + "\n") }
    if let range { try write(folder + "/max_energy_range_uj", "\(range)\n") }
    if let energy { try write(folder + "/energy_uj", "\(energy)\n") }
  }

  func write(_ file: String, _ text: String) throws {
    let stream = try #require(fopen(file, "w"))
    fputs(text, stream)
    fclose(stream)
    if !files.contains(file) { files.append(file) }
  }

  deinit {
    for file in files { unlink(file) }
    for folder in folders { rmdir(folder) }
    rmdir(path)
  }
}

@Suite struct EnergyTests {
  private let second: UInt64 = 1_000_000_000
  private let range: UInt64 = 262_143_328_850

  @Test func packagesAndMemoryAreAddedUp() throws {
    let directory = try PowercapDirectory()
    try directory.set("intel-rapl:0", name: "package-0", range: range, energy: 1000)
    try directory.set("intel-rapl:1", name: "package-1", range: range, energy: 5000)
    try directory.set("intel-rapl:0:0", name: "core", range: range, energy: 1)
    try directory.set("intel-rapl:0:1", name: "dram", range: range, energy: 10)
    try directory.set("intel-rapl:2", name: "psys", range: range, energy: 1)
    var meter = EnergyMeter(directory: directory.path)
    #expect(meter.isAvailable)
    #expect(meter.read(now: 0) == nil)
    try directory.set("intel-rapl:0", energy: 1700)
    try directory.set("intel-rapl:1", energy: 5020)
    try directory.set("intel-rapl:0:0", energy: 100_000)
    try directory.set("intel-rapl:0:1", energy: 13)
    try directory.set("intel-rapl:2", energy: 100_000)
    #expect(meter.read(now: second) == 723)
    #expect(meter.read(now: 2 * second) == 0)
  }

  @Test func wrapsAround() throws {
    let directory = try PowercapDirectory()
    try directory.set("intel-rapl:0", name: "package-0", range: range, energy: range - 5)
    var meter = EnergyMeter(directory: directory.path)
    _ = meter.read(now: 0)
    try directory.set("intel-rapl:0", energy: 37)
    #expect(meter.read(now: second) == 42)
  }

  /// 262 kJ at 1000 W are 262 s: after that a counter may have passed its end twice.
  @Test func aLongSilenceIsNotMeasured() throws {
    let directory = try PowercapDirectory()
    try directory.set("intel-rapl:0", name: "package-0", range: range, energy: 0)
    var meter = EnergyMeter(directory: directory.path)
    _ = meter.read(now: 0)
    try directory.set("intel-rapl:0", energy: 7)
    #expect(meter.read(now: 300 * second) == nil)
    try directory.set("intel-rapl:0", energy: 9)
    #expect(meter.read(now: 301 * second) == 2)
  }

  @Test func aFailingCounterIsNotMeasured() throws {
    let directory = try PowercapDirectory()
    try directory.set("intel-rapl:0", name: "package-0", range: range, energy: 5)
    var meter = EnergyMeter(directory: directory.path)
    _ = meter.read(now: 0)
    for text in ["", "garbage", "-1", "\(range + 1)", String(repeating: "9", count: 100)] {
      try directory.write(directory.path + "/intel-rapl:0/energy_uj", text)
      #expect(meter.read(now: second) == nil)
    }
    try directory.set("intel-rapl:0", energy: 8)
    #expect(meter.read(now: 2 * second) == nil)
    try directory.set("intel-rapl:0", energy: 9)
    #expect(meter.read(now: 3 * second) == 1)
  }

  @Test func absentCountersAreNotMeasured() throws {
    var absent = EnergyMeter(directory: "/nonexistent")
    #expect(!absent.isAvailable)
    #expect(absent.read(now: 0) == nil && absent.read(now: second) == nil)
    let directory = try PowercapDirectory()
    var empty = EnergyMeter(directory: directory.path)
    #expect(empty.read(now: 0) == nil && empty.read(now: second) == nil)
    try directory.set("intel-rapl:0", name: "package-0", range: range, energy: 1)
    try directory.set("intel-rapl:1", name: "package-1", energy: 1)
    #expect(!EnergyMeter(directory: directory.path).isAvailable)
  }
}
