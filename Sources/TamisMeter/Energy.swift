// Energy as the processor reports it (RAPL, through Linux's powercap files): the sum over packages and their memory,
// counters that wrap handled. Where a counter is missing, unreadable or may have wrapped twice, the answer is "not
// measured"; nothing is estimated. The counters see the whole machine, not one process.

import Glibc

package struct EnergyMeter: Sendable {
  private var domains: [Domain]
  private var readAt: UInt64 = 0
  private var valid = false

  package static let linuxPath = "/sys/class/powercap"

  private struct Domain: Sendable {
    let path: String
    /// The counter counts 0…range and starts over.
    let range: UInt64
    var last: UInt64 = 0
  }

  /// No package draws more: after range / 1000 W seconds without a read, a counter may have wrapped twice.
  private static let mostWatts: UInt64 = 1000
  private static let mostDomains = 256

  /// Finds the counters; a machine without any (a virtual machine, a container, no permission) is never measured.
  package init(directory: String = linuxPath) {
    let paths = EnergyMeter.names(in: directory).map { directory + "/" + $0 }
    let counted = paths.filter(EnergyMeter.isCounted)
    let found = counted.compactMap(EnergyMeter.domain)
    domains = found.count == counted.count ? found : []
  }

  package var isAvailable: Bool { !domains.isEmpty }

  /// Microjoules since the last read, `now` in nanoseconds of a monotonic clock. nil for the first read, and wherever a
  /// counter did not answer.
  package mutating func read(now: UInt64) -> UInt64? {
    let elapsed = now >= readAt ? now &- readAt : UInt64.max
    var total: UInt64 = 0
    var complete = valid && isAvailable
    var answered = isAvailable
    for index in domains.indices {
      guard let value = EnergyMeter.number(domains[index].path + "/energy_uj"), value <= domains[index].range else {
        (complete, answered) = (false, false)
        continue
      }
      let used = EnergyMeter.difference(domains[index], value)
      if !EnergyMeter.isCertain(domains[index], elapsed) { complete = false }
      domains[index].last = value
      let (sum, overflowed) = total.addingReportingOverflow(used)
      if overflowed { complete = false } else { total = sum }
    }
    readAt = now
    valid = answered
    return complete ? total : nil
  }

  private static func difference(_ domain: Domain, _ value: UInt64) -> UInt64 {
    value >= domain.last ? value &- domain.last : domain.range &- domain.last &+ value
  }

  private static func isCertain(_ domain: Domain, _ nanoseconds: UInt64) -> Bool {
    nanoseconds / 1000 < domain.range / mostWatts
  }
}

// MARK: The powercap directory

extension EnergyMeter {
  /// Packages are `intel-rapl:N`, their parts `intel-rapl:N:M`, on AMD too. A package holds its cores, but not its
  /// memory; "psys" holds everything and would count twice.
  private static func isCounted(_ path: String) -> Bool {
    guard let name = text(path + "/name") else { return false }
    return name.hasPrefix("package-") || name == "dram"
  }

  private static func domain(_ path: String) -> Domain? {
    guard let range = number(path + "/max_energy_range_uj"), range > 0 else { return nil }
    return Domain(path: path, range: range)
  }

  private static func names(in directory: String) -> [String] {
    guard let stream = opendir(directory) else { return [] }
    defer { closedir(stream) }
    var names: [String] = []
    while names.count < mostDomains, let entry = readdir(stream) {
      let name = withUnsafeBytes(of: &entry.pointee.d_name) { bytes in
        String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
      }
      if name.hasPrefix("intel-rapl:") { names.append(name) }
    }
    return names.sorted()
  }

  private static func number(_ path: String) -> UInt64? { text(path).flatMap { UInt64($0) } }

  /// The first line of a small file.
  private static func text(_ path: String) -> String? {
    let file = open(path, O_RDONLY | O_CLOEXEC)
    guard file >= 0 else { return nil }
    defer { close(file) }
    var bytes = [UInt8](repeating: 0, count: 64)
    let count = Glibc.read(file, &bytes, bytes.count)
    guard count > 0, count < 64 else { return nil }
    return String(decoding: bytes.prefix(count).prefix { $0 != 10 }, as: UTF8.self)
  }
}
