// How many threads this process should use: what the affinity mask allows, cut down to the processor quota of
// its control group (version 1 or 2), at least one. Reads /proc/self/cgroup and the group's limit files in
// bounded pieces; whatever it cannot read or understand is no limit.
import Glibc
import TamisShims

package enum Processors {
  package static func allowed() -> Int {
    let affinity = Int(tamis_shims_affinity_count())
    guard let quota = quota(root: "") else { return max(affinity, 1) }
    return max(min(affinity, quota), 1)
  }

  /// Whole processors that the quota is worth (0 for less than one), or nil without a quota. `root` stands
  /// before /proc and /sys.
  package static func quota(root: String) -> Int? {
    var smallest: Int?
    for line in lines(of: root + "/proc/self/cgroup", limit: 16384) {
      guard let group = Group(line: line) else { continue }
      for directory in group.directories {
        guard let limit = group.limit(root + "/sys/fs/cgroup" + directory) else { continue }
        smallest = min(smallest ?? limit, limit)
      }
    }
    return smallest
  }

  /// A line of /proc/self/cgroup that can limit processor time: "0::/path" or "4:cpu,cpuacct:/path".
  private struct Group {
    let unified: Bool
    let controllers: String
    let path: [Substring]

    init?(line: Substring) {
      let fields = line.split(separator: ":", maxSplits: 2, omittingEmptySubsequences: false)
      guard let hierarchy = fields.first, let names = fields.dropFirst().first, let path = fields.dropFirst(2).first
      else { return nil }
      unified = hierarchy == "0" && names.isEmpty
      guard unified || names.split(separator: ",").contains("cpu") else { return nil }
      controllers = String(names)
      let parts = path.split(separator: "/")
      // Above the root of our namespace nothing can be looked up.
      self.path = parts.contains("..") || parts.count > 64 ? [] : parts
    }

    /// The group and all its ancestors under every usual mount point. In a container without a namespace of its
    /// own the group's path is the host's and only the mount point itself exists.
    var directories: [String] {
      let mounts = unified ? ["", "/unified"] : ["/" + controllers, "/cpu", "/cpu,cpuacct"]
      return mounts.flatMap { mount in
        (0...path.count).map { depth in path.prefix(depth).reduce(mount) { $0 + "/" + $1 } }
      }
    }

    func limit(_ directory: String) -> Int? {
      if unified {
        let words = lines(of: directory + "/cpu.max", limit: 128).first?.split(separator: " ") ?? []
        return processors(quota: words.first, period: words.dropFirst().first)
      }
      return processors(
        quota: lines(of: directory + "/cpu.cfs_quota_us", limit: 64).first,
        period: lines(of: directory + "/cpu.cfs_period_us", limit: 64).first)
    }

    /// "max" and -1 are no limit.
    private func processors(quota: Substring?, period: Substring?) -> Int? {
      guard let quota = quota.flatMap({ Int($0) }), let period = period.flatMap({ Int($0) }),
        quota > 0, period > 0
      else { return nil }
      return quota / period
    }
  }

  /// The lines of the first `limit` bytes of a file; none when it cannot be read.
  private static func lines(of file: String, limit: Int) -> [Substring] {
    let descriptor = open(file, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return [] }
    defer { close(descriptor) }
    var text: [UInt8] = []
    var piece: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0, 0, 0, 0, 0)
    while text.count < limit {
      let got = withUnsafeMutableBytes(of: &piece) { read(descriptor, $0.baseAddress, $0.count) }
      guard got > 0 else { break }
      withUnsafeBytes(of: &piece) { text.append(contentsOf: $0.prefix(got)) }
    }
    return String(decoding: text.prefix(limit), as: UTF8.self).split(separator: "\n")
  }
}
