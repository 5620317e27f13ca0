// A folder whose files several processes share: what is in it, who may change it now, when a file was last used (its
// time of modification). Locks end with the process that holds them, however it ends. It refuses names with a slash.

import Glibc
package import TamisRuntime

package struct FolderEntry: Sendable {
  package let name: String
  package let file: UInt64
  package let bytes: Int
  /// Nanoseconds since 1970.
  package let used: Int64
}

package struct Folder: Sendable {
  package let path: String

  /// Made if it does not exist (its parent must).
  package init(_ path: String) throws(TamisError) {
    self.path = path
    if mkdir(path, 0o777) != 0, errno != EEXIST { throw File.failure(path, "cannot make folder", errno) }
    var status = stat()
    guard stat(path, &status) == 0 else { throw File.failure(path, "cannot look at folder", errno) }
    guard status.st_mode & S_IFMT == S_IFDIR else { throw TamisError(.io, "\(path): not a folder") }
  }

  package func path(of name: String) -> String { "\(path)/\(name)" }

  /// Its regular files, in no order. Files that vanish meanwhile are left out.
  package func forEachFile(_ body: (FolderEntry) throws(TamisError) -> Void) throws(TamisError) {
    guard let listing = opendir(path) else { throw File.failure(path, "cannot list", errno) }
    defer { closedir(listing) }
    while let entry = readdir(listing) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) { field in
        field.withMemoryRebound(to: CChar.self, capacity: MemoryLayout.size(ofValue: entry.pointee.d_name)) {
          String(cString: $0)
        }
      }
      var status = stat()
      guard fstatat(dirfd(listing), name, &status, AT_SYMLINK_NOFOLLOW) == 0, status.st_mode & S_IFMT == S_IFREG
      else { continue }
      try body(
        FolderEntry(
          name: name, file: UInt64(status.st_ino), bytes: Int(status.st_size),
          used: Self.nanoseconds(status.st_mtim)))
    }
  }

  /// When a file was last made or removed here, nanoseconds since 1970.
  package func changed() throws(TamisError) -> Int64 {
    var status = stat()
    guard stat(path, &status) == 0 else { throw File.failure(path, "cannot look at folder", errno) }
    return Self.nanoseconds(status.st_mtim)
  }

  private static func nanoseconds(_ time: timespec) -> Int64 {
    Int64(time.tv_sec) &* 1_000_000_000 &+ Int64(time.tv_nsec)
  }

  /// Now is when the file was last used.
  package func touch(_ name: String) { utimensat(AT_FDCWD, path(of: name), nil, 0) }

  /// Those who have it open or mapped keep it.
  package func remove(_ name: String) { unlink(path(of: name)) }
}

/// The right to change a folder, held by one process (and one of these) at a time.
package struct FolderLock: ~Copyable {
  private let descriptor: Int32
  private static let pollMicroseconds: UInt32 = 2000

  /// Waits for it, until the call is cancelled.
  package init(
    _ folder: Folder, _ name: String, _ context: Context, _ token: CallToken
  ) throws(TamisError) {
    let path = folder.path(of: name)
    let descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o666)
    guard descriptor >= 0 else { throw File.failure(path, "cannot open", errno) }
    while flock(descriptor, LOCK_EX | LOCK_NB) != 0 {
      let code = errno
      guard code == EWOULDBLOCK || code == EINTR, !context.cancelled(token) else {
        close(descriptor)
        try context.checkCancelled(token)
        throw File.failure(path, "cannot lock", code)
      }
      usleep(Self.pollMicroseconds)
    }
    self.descriptor = descriptor
  }

  /// Unlocked by name: a child that was forked meanwhile has the same lock, and keeps it by closing nothing.
  deinit {
    flock(descriptor, LOCK_UN)
    close(descriptor)
  }
}
