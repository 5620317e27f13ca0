// Files: reading a small one whole, mapping a large one, replacing one all or nothing.
// It refuses everything but regular files (a pipe would block the host), and a file longer than its caller expects.
//
// A mapped file that another process shortens while it is in use raises SIGBUS on access, as for every program that
// maps files. Everything that is parsed is therefore read, not mapped; only tensor data is mapped, after its offsets
// were checked against the length.

import Glibc
package import TamisRuntime

package enum File {
  /// The whole file; `.format` where it is longer than `limit` bytes.
  package static func read(_ path: String, limit: Int, _ context: Context) throws(TamisError) -> GrowableBuffer<UInt8> {
    let file = try OpenFile(path)
    guard file.length <= limit else {
      throw TamisError(.format, "\(path): \(file.length) bytes, at most \(limit) are read")
    }
    return try file.read(from: 0, count: file.length, context)
  }

  package static func exists(_ path: String) -> Bool { access(path, F_OK) == 0 }

  static func failure(_ path: String, _ action: String, _ code: Int32) -> TamisError {
    TamisError(code == ENOMEM ? .memory : .io, "\(path): \(action): \(String(cString: strerror(code)))")
  }
}

/// A regular file open for reading.
package struct OpenFile: ~Copyable {
  package let path: String
  package let length: Int
  private let descriptor: Int32

  package init(_ path: String) throws(TamisError) {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
    guard descriptor >= 0 else { throw File.failure(path, "cannot open", errno) }
    var status = stat()
    guard fstat(descriptor, &status) == 0 else {
      let code = errno
      close(descriptor)
      throw File.failure(path, "cannot stat", code)
    }
    guard status.st_mode & S_IFMT == S_IFREG, status.st_size >= 0 else {
      close(descriptor)
      throw TamisError(.io, "\(path): not a regular file")
    }
    self.path = path
    self.descriptor = descriptor
    length = Int(status.st_size)
  }

  deinit { close(descriptor) }

  package func read(
    from offset: Int, count: Int, _ context: Context
  ) throws(TamisError) -> GrowableBuffer<UInt8> {
    var bytes = GrowableBuffer<UInt8>(context)
    try bytes.append(repeating: 0, count: count)
    try read(from: offset, into: UnsafeMutableRawBufferPointer(bytes.mutableElements))
    return bytes
  }

  /// Fills `target`; a file that has become shorter is an error.
  package func read(from offset: Int, into target: UnsafeMutableRawBufferPointer) throws(TamisError) {
    var done = 0
    while done < target.count {
      let got = pread(
        descriptor, target.baseAddress?.advanced(by: done), target.count &- done, off_t(offset &+ done))
      if got < 0, errno == EINTR { continue }
      guard got >= 0 else { throw File.failure(path, "cannot read", errno) }
      guard got > 0 else { throw TamisError(.io, "\(path): ends at byte \(offset &+ done) while it is read") }
      done &+= got
    }
  }

  package func map() throws(TamisError) -> MappedFile {
    guard length > 0 else { return MappedFile(path: path, memory: nil, length: 0) }
    guard let memory = mmap(nil, length, PROT_READ, MAP_SHARED, descriptor, 0), memory != MAP_FAILED else {
      throw File.failure(path, "cannot map", errno)
    }
    return MappedFile(path: path, memory: memory, length: length)
  }
}

/// A file's bytes, shared read-only with every process that maps it; given back when the object goes.
package final class MappedFile: @unchecked Sendable {
  package let path: String
  package let bytes: UnsafeRawBufferPointer

  fileprivate init(path: String, memory: UnsafeMutableRawPointer?, length: Int) {
    self.path = path
    bytes = UnsafeRawBufferPointer(start: memory, count: memory == nil ? 0 : length)
  }

  deinit {
    if let memory = bytes.baseAddress { munmap(UnsafeMutableRawPointer(mutating: memory), bytes.count) }
  }

  package static func open(_ path: String) throws(TamisError) -> MappedFile { try OpenFile(path).map() }
}

