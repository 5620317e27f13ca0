// What every exported function shares: errors become a status and one line of text that begins with the function's
// name, handles become objects, option structs are read as far as the caller's `size` says they go, tensors are
// checked. Nothing else belongs to this module: an exported function checks, calls a room below, and returns.

import CTamis
import TamisOperators
import TamisRuntime

/// Runs an exported function's body; a thrown error is recorded for tamis_last_error.
func boundary(_ function: StaticString, _ body: () throws(TamisError) -> Void) -> tamis_status {
  TamisError.clearError()
  do {
    try body()
    return tamis_status(TAMIS_OK)
  } catch {
    return TamisError(error.status, "\(function): \(error.message)").record()
  }
}

// MARK: Handles

/// The object behind a handle that may not be NULL.
func object<Object: AnyObject>(_ handle: OpaquePointer?, _ name: StaticString) throws(TamisError) -> Object {
  guard let handle else { throw TamisError(.argument, "\(name) is NULL") }
  return Unmanaged<Object>.fromOpaque(UnsafeRawPointer(handle)).takeUnretainedValue()
}

/// A new handle that owns one reference.
func handle<Object: AnyObject>(_ object: Object) -> OpaquePointer {
  OpaquePointer(Unmanaged.passRetained(object).toOpaque())
}

/// Gives the reference of a handle back; NULL does nothing.
func drop<Object: AnyObject>(_ handle: OpaquePointer?, _: Object.Type) {
  guard let handle else { return }
  Unmanaged<Object>.fromOpaque(UnsafeRawPointer(handle)).release()
}

/// The context of a call; NULL: the calling thread, unmetered.
func context(_ handle: OpaquePointer?) throws(TamisError) -> Context {
  guard handle != nil else { return Context.unmetered }
  return try object(handle, "ctx")
}

/// Where a result goes; may not be NULL.
func required<Value>(
  _ pointer: UnsafeMutablePointer<Value>?, _ name: StaticString
) throws(TamisError) -> UnsafeMutablePointer<Value> {
  guard let pointer else { throw TamisError(.argument, "\(name) is NULL") }
  try requireAligned(pointer, name)
  return pointer
}

/// Where a result goes that the caller may not want.
func requireAligned<Value>(_ pointer: UnsafeMutablePointer<Value>?, _ name: StaticString) throws(TamisError) {
  guard UInt(bitPattern: pointer) % UInt(MemoryLayout<Value>.alignment) == 0 else {
    throw TamisError(.argument, "\(name): not aligned to \(MemoryLayout<Value>.alignment) bytes")
  }
}

// MARK: Options

/// The `size` of a struct of the caller, older (shorter) or newer (longer) than ours. It ends between two fields:
/// no release cut one in half.
func callersSize<Value>(_ pointer: UnsafePointer<Value>, _ name: StaticString) throws(TamisError) -> Int {
  let alignment = MemoryLayout<Value>.alignment
  let raw = UnsafeRawPointer(pointer)
  guard UInt(bitPattern: raw) % UInt(alignment) == 0 else {
    throw TamisError(.argument, "\(name): not aligned to \(alignment) bytes")
  }
  let theirs = Int(raw.load(as: UInt32.self))
  guard theirs >= 8, theirs <= 4096, theirs % alignment == 0 else {
    throw TamisError(
      .argument, "\(name): size is \(theirs), expected \(MemoryLayout<Value>.size) (use the _INIT macro)")
  }
  return theirs
}

/// Fills a struct of the caller as far as its `size` goes; fields that we do not know become zero.
func fill<Value>(_ pointer: UnsafeMutablePointer<Value>, _ theirs: Int, with value: Value) {
  let target = UnsafeMutableRawPointer(pointer)
  withUnsafePointer(to: value) { ours in
    target.copyMemory(from: ours, byteCount: min(theirs, MemoryLayout<Value>.size))
  }
  var at = MemoryLayout<Value>.size
  while at < theirs {
    target.storeBytes(of: 0, toByteOffset: at, as: UInt8.self)
    at &+= 1
  }
}

/// An option struct of the caller, which may be older (shorter) or newer (longer) than ours: the part we know is
/// copied over the defaults, and a longer one must hold zeros behind it.
func options<Options>(
  _ pointer: UnsafePointer<Options>?, defaults: Options, _ name: StaticString = "options"
) throws(TamisError) -> Options {
  guard let pointer else { return defaults }
  let ours = MemoryLayout<Options>.size
  let theirs = try callersSize(pointer, name)
  let raw = UnsafeRawPointer(pointer)
  var at = ours
  while at < theirs {
    guard raw.load(fromByteOffset: at, as: UInt8.self) == 0 else {
      throw TamisError(.unsupported, "\(name): sets a field that this version does not know")
    }
    at += 1
  }
  var merged = defaults
  withUnsafeMutableBytes(of: &merged) { bytes in
    bytes.copyMemory(from: UnsafeRawBufferPointer(start: raw, count: min(ours, theirs)))
  }
  return merged
}

// MARK: Tensors

extension Tensor {
  /// The checked view of a tensor of the caller; NULL is refused.
  init(_ pointer: UnsafePointer<tamis_tensor>?, _ name: StaticString) throws(TamisError) {
    guard let pointer else { throw TamisError(.argument, "\(name) is NULL") }
    guard UInt(bitPattern: pointer) % UInt(MemoryLayout<tamis_tensor>.alignment) == 0 else {
      throw TamisError(.argument, "\(name): the struct is not aligned")
    }
    let t = pointer.pointee
    guard let block = Int(exactly: t.block) else { throw TamisError(.argument, "\(name): block is too large") }
    try self.init(
      name, data: t.data, dtype: t.dtype, rank: Int(t.ndim), shape: axes(t.shape), stride: axes(t.stride),
      scale: t.scale, block: block)
  }

  /// The same, where NULL means that the caller does not want or have it.
  static func optional(
    _ pointer: UnsafePointer<tamis_tensor>?, _ name: StaticString
  ) throws(TamisError) -> Tensor? {
    guard pointer != nil else { return nil }
    return try Tensor(pointer, name)
  }
}

private func axes(_ values: (Int64, Int64, Int64, Int64)) -> SIMD4<Int> {
  SIMD4(Int(values.0), Int(values.1), Int(values.2), Int(values.3))
}

// MARK: Values behind handles

/// A value that a handle stands for.
final class Box<Value: Sendable>: Sendable {
  let value: Value
  init(_ value: Value) { self.value = value }
}

// MARK: Text

/// Text of the caller: UTF-8 with a final zero, at most 4,096 bytes. NULL: nil.
func text(_ pointer: UnsafePointer<CChar>?, _ name: StaticString) throws(TamisError) -> String? {
  guard let pointer else { return nil }
  var length = 0
  while length <= 4096, pointer[length] != 0 { length &+= 1 }
  guard length <= 4096 else { throw TamisError(.argument, "\(name) is longer than 4096 bytes") }
  let bytes = UnsafeRawBufferPointer(start: pointer, count: length)
  guard let text = String(validating: bytes, as: UTF8.self) else {
    throw TamisError(.argument, "\(name) is not UTF-8")
  }
  return text
}

/// A path of the caller; may not be NULL or empty.
func path(_ pointer: UnsafePointer<CChar>?, _ name: StaticString) throws(TamisError) -> String {
  guard let path = try text(pointer, name) else { throw TamisError(.argument, "\(name) is NULL") }
  guard !path.isEmpty else { throw TamisError(.argument, "\(name) is empty") }
  return path
}

/// Copies text [UTF-8] with a final zero into the caller's buffer, cut if it is too small; `needed`: bytes for all of it.
func copyText(
  _ text: some Collection<UInt8>, _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?
) throws(TamisError) {
  guard capacity >= 0 else { throw TamisError(.argument, "capacity is too large") }
  guard buffer != nil || capacity == 0 else { throw TamisError(.argument, "text is NULL") }
  try requireAligned(needed, "needed")
  needed?.pointee = text.count &+ 1
  guard let buffer, capacity > 0 else { return }
  var at = 0
  for byte in text where at < capacity &- 1 {
    buffer[at] = CChar(bitPattern: byte)
    at &+= 1
  }
  buffer[at] = 0
}
