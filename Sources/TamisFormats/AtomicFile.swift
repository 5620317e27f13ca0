// Replacing a file all or nothing. What is written has no name until it is complete and on the disk; then it takes its
// name in one step. A process that is killed at any point leaves the old file or the new one. It refuses lengths that
// the process may not write, before the kernel would answer with a signal.
//
// Linux gives files without a name (O_TMPFILE), which vanish with the process that writes them. Where the file system
// has none, the file is written as "<path>.<process>.<number>.part", and a killed process leaves that behind.

import Glibc
package import TamisRuntime
import TamisShims

package struct AtomicFile: ~Copyable {
  private let path: String
  private let temporary: String
  private let descriptor: Int32
  /// Does `temporary` exist?
  private var named: Bool

  package init(_ path: String) throws(TamisError) {
    self.path = path
    temporary = "\(path).\(getpid()).\(UInt32.random(in: 0 ... .max)).part"
    let nameless = Self.canLink ? tamis_shims_open_nameless(Self.directory(of: path)) : -1
    named = nameless < 0
    descriptor = named ? open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o666) : nameless
    guard descriptor >= 0 else { throw File.failure(path, "cannot create", errno) }
  }

  deinit {
    if descriptor >= 0 { close(descriptor) }
    if named { unlink(temporary) }
  }

  /// A nameless file gets its name through this folder.
  private static var canLink: Bool { access("/proc/self/fd", X_OK) == 0 }

  private static func directory(of path: String) -> String {
    guard let slash = path.utf8.lastIndex(of: UInt8(ascii: "/")) else { return "." }
    return slash == path.startIndex ? "/" : String(path[..<slash])
  }

  /// Room on the disk for a file of `bytes`, as far as the file system can promise it. Writing past the process's
  /// limit of file sizes would raise SIGXFSZ, which ends a host that does not expect it.
  package func reserve(_ bytes: Int) throws(TamisError) {
    var limit = rlimit()
    if getrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &limit) == 0, UInt64(bytes) > UInt64(limit.rlim_cur) {
      throw File.failure(path, "cannot write \(bytes) bytes", EFBIG)
    }
    guard bytes > 0 else { return }
    let code = tamis_shims_reserve(descriptor, Int64(bytes))
    if [ENOSPC, EDQUOT, EFBIG].contains(code) { throw File.failure(path, "cannot write \(bytes) bytes", code) }
  }

  /// Behind what was written before.
  package func write(_ bytes: UnsafeRawBufferPointer) throws(TamisError) {
    try write(bytes) { [descriptor] from, count, _ in Glibc.write(descriptor, from, count) }
  }

  package func write(_ bytes: UnsafeRawBufferPointer, at offset: Int) throws(TamisError) {
    try write(bytes) { [descriptor] from, count, done in pwrite(descriptor, from, count, off_t(offset &+ done)) }
  }

  private func write(
    _ bytes: UnsafeRawBufferPointer, _ some: (_ from: UnsafeRawPointer?, _ count: Int, _ done: Int) -> Int
  ) throws(TamisError) {
    var done = 0
    while done < bytes.count {
      let wrote = some(bytes.baseAddress?.advanced(by: done), bytes.count &- done, done)
      if wrote < 0, errno == EINTR { continue }
      guard wrote > 0 else { throw File.failure(path, "cannot write", wrote < 0 ? errno : ENOSPC) }
      done &+= wrote
    }
  }

  /// After this the file exists whole, also if the machine stops.
  package mutating func commit() throws(TamisError) {
    guard fsync(descriptor) == 0 else { throw File.failure(path, "cannot flush", errno) }
    if !named {
      guard linkat(AT_FDCWD, "/proc/self/fd/\(descriptor)", AT_FDCWD, temporary, AT_SYMLINK_FOLLOW) == 0 else {
        throw File.failure(temporary, "cannot create", errno)
      }
      named = true
    }
    guard rename(temporary, path) == 0 else { throw File.failure(path, "cannot rename", errno) }
    named = false
    let folder = open(Self.directory(of: path), O_RDONLY | O_CLOEXEC | O_DIRECTORY)
    guard folder >= 0 else { return }
    fsync(folder)
    close(folder)
  }
}
