// The processor quota read from sample control-group files in a temporary directory.
import Glibc
import TamisRuntime
import Testing

@Suite struct ProcessorsTests {
  /// Makes the files under a fresh root, asks for the quota, removes everything.
  private func quota(_ files: [String: String]) -> Int? {
    var template = Array("/tmp/tamis-processors-XXXXXX".utf8CString)
    guard let folder = mkdtemp(&template) else {
      Issue.record("no temporary directory")
      return nil
    }
    let root = String(cString: folder)
    var made = [root]
    defer { for path in made.reversed() { remove(path) } }
    for (path, text) in files { made += write(text, to: root + path) }
    return Processors.quota(root: root)
  }

  /// Returns what it made, folders first.
  private func write(_ text: String, to path: String) -> [String] {
    var made: [String] = []
    var parent = ""
    for part in path.split(separator: "/").dropLast() {
      parent += "/" + part
      if mkdir(parent, 0o700) == 0 { made.append(parent) }
    }
    guard let file = fopen(path, "w") else {
      Issue.record("cannot write \(path)")
      return made
    }
    fputs(text, file)
    fclose(file)
    return made + [path]
  }

  private let own = "/proc/self/cgroup"
  private let groups = "/sys/fs/cgroup"

  @Test func noFilesNoLimit() {
    #expect(quota([:]) == nil)
    #expect(quota([own: "0::/\n"]) == nil)
  }

  @Test func version2() {
    #expect(quota([own: "0::/\n", groups + "/cpu.max": "250000 100000\n"]) == 2)
    #expect(quota([own: "0::/\n", groups + "/cpu.max": "max 100000\n"]) == nil)
    #expect(quota([own: "0::/\n", groups + "/cpu.max": "50000 100000\n"]) == 0)
  }

  @Test func theTightestAncestorCounts() {
    let files = [
      own: "0::/a/b/c\n",
      groups + "/a/cpu.max": "300000 100000\n",
      groups + "/a/b/cpu.max": "600000 100000\n",
      groups + "/a/b/c/cpu.max": "max 100000\n",
    ]
    #expect(quota(files) == 3)
  }

  @Test func version1() {
    let files = [
      own: "5:memory:/x\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n",
      groups + "/cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
      groups + "/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
      groups + "/memory/cpu.cfs_quota_us": "100000\n",
      groups + "/memory/cpu.cfs_period_us": "100000\n",
    ]
    #expect(quota(files) == 4)
    let unlimited = [
      own: "4:cpu:/\n", groups + "/cpu/cpu.cfs_quota_us": "-1\n", groups + "/cpu/cpu.cfs_period_us": "100000\n",
    ]
    #expect(quota(unlimited) == nil)
  }

  @Test func bothVersions() {
    let files = [
      own: "2:cpu:/\n0::/\n",
      groups + "/cpu/cpu.cfs_quota_us": "700000\n",
      groups + "/cpu/cpu.cfs_period_us": "100000\n",
      groups + "/unified/cpu.max": "500000 100000\n",
    ]
    #expect(quota(files) == 5)
  }

  @Test func pathsAboveTheNamespaceAreNotFollowed() {
    let files = [own: "0::/../../b\n", groups + "/cpu.max": "200000 100000\n", "/b/cpu.max": "100000 100000\n"]
    #expect(quota(files) == 2)
  }

  @Test func nonsenseIsNoLimit() {
    for text in ["", "\n", "100000", "100000 0", "-5 100000", "100000 -1", "a b", "99999999999999999999 1"] {
      #expect(quota([own: "0::/\n", groups + "/cpu.max": text]) == nil, "\(text)")
    }
    for text in ["", ":", "::", "0:", "cpu", "x::/", String(repeating: "z", count: 100_000)] {
      #expect(quota([own: text, groups + "/cpu.max": "100000 100000"]) == nil, "\(text.prefix(20))")
    }
    let deep = "0::" + String(repeating: "/d", count: 5000) + "\n"
    #expect(quota([own: deep, groups + "/cpu.max": "200000 100000"]) == 2)
  }
}
