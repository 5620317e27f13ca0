// What a failed call says: one status and one line of text. The text of the last failure of a thread is kept
// for C callers in a thread-local buffer; this file is the only writer of it. Refuses nothing.
import TamisShims

/// The values of `tamis_status`.
package enum Status: Int32, Sendable {
  case ok = 0
  case argument = -1
  /// The allocator had no memory.
  case memory = -2
  case full = -3
  case io = -4
  case format = -5
  case unsupported = -6
  case cancelled = -7
  /// A limit the caller set (the context's `maxBytes`) would be exceeded.
  case budget = -8
  case busy = -9
  case `internal` = -10
}

package struct TamisError: Error {
  package let status: Status
  /// One line: "function: what was wrong, what was expected".
  package let message: String

  package init(_ status: Status, _ message: String) {
    self.status = status
    self.message = message
  }

  /// Makes this the calling thread's last error and returns the status for C.
  package func record() -> Int32 {
    guard let buffer = tamis_shims_error_buffer() else { return status.rawValue }
    let capacity = Int(TAMIS_SHIMS_ERROR_BYTES) - 1
    var length = 0
    for byte in message.utf8 {
      if length == capacity {
        if byte & 0xC0 == 0x80 { length = Self.characterStart(buffer, before: length) }
        break
      }
      buffer[length] = CChar(bitPattern: byte)
      length &+= 1
    }
    buffer[length] = 0
    return status.rawValue
  }

  /// Where the last UTF-8 character that begins before `end` begins: a cut character is left out whole.
  private static func characterStart(_ text: UnsafeMutablePointer<CChar>, before end: Int) -> Int {
    var start = end
    while start > 0 {
      start &-= 1
      if UInt8(bitPattern: text[start]) & 0xC0 != 0x80 { break }
    }
    return start
  }

  /// Empties the calling thread's last error text.
  package static func clearError() {
    tamis_shims_error_buffer()?.pointee = 0
  }
}
