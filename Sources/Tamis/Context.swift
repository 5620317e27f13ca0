// Section 2 of the header: contexts.

public import CTamis
import TamisKernels
import TamisMeter
import TamisRuntime

@_cdecl("tamis_ctx_create") @implementation
public func tamis_ctx_create(
  _ options: UnsafePointer<tamis_ctx_options>?, _ ctx: UnsafeMutablePointer<OpaquePointer?>?
) -> tamis_status {
  boundary("tamis_ctx_create") { () throws(TamisError) in
    let ctx = try required(ctx, "ctx")
    let given = try Tamis.options(options, defaults: tamis_ctx_options())
    var wanted = ContextOptions()
    wanted.threads = given.threads
    wanted.maxBytes = given.max_bytes
    wanted.isaCap = try given.isa.map { name throws(TamisError) in try isaName(name) }
    wanted.allocate = given.alloc
    wanted.release = given.release
    wanted.parallel = given.parallel
    wanted.log = given.log
    wanted.user = given.user
    wanted.recorder = try Meter(label: "").recorder
    ctx.pointee = handle(try Context.create(wanted))
  }
}

/// A short name from the caller: at most 32 bytes are read.
private func isaName(_ name: UnsafePointer<CChar>) throws(TamisError) -> String {
  var text = ""
  for i in 0..<32 {
    if name[i] == 0, i > 0 { return text }
    if name[i] == 0 { throw TamisError(.argument, "options: isa is empty (NULL: the best)") }
    text.unicodeScalars.append(Unicode.Scalar(UInt8(bitPattern: name[i])))
  }
  throw TamisError(.argument, "options: isa is longer than any known name")
}

@_cdecl("tamis_ctx_free") @implementation
public func tamis_ctx_free(_ ctx: OpaquePointer?) { drop(ctx, Context.self) }

@_cdecl("tamis_ctx_cancel") @implementation
public func tamis_ctx_cancel(_ ctx: OpaquePointer?) {
  guard let context: Context = try? object(ctx, "ctx") else { return }
  context.cancel()
}

@_cdecl("tamis_ctx_bytes") @implementation
public func tamis_ctx_bytes(
  _ ctx: OpaquePointer?, _ now: UnsafeMutablePointer<UInt64>?, _ peak: UnsafeMutablePointer<UInt64>?
) -> tamis_status {
  boundary("tamis_ctx_bytes") { () throws(TamisError) in
    let context: Context = try object(ctx, "ctx")
    try requireAligned(now, "now")
    try requireAligned(peak, "peak")
    now?.pointee = context.bytesInUse
    peak?.pointee = context.peakBytes
  }
}

@_cdecl("tamis_ctx_trim") @implementation
public func tamis_ctx_trim(_ ctx: OpaquePointer?) -> tamis_status {
  boundary("tamis_ctx_trim") { () throws(TamisError) in
    let context: Context = try object(ctx, "ctx")
    context.trim()
  }
}

@_cdecl("tamis_ctx_describe") @implementation
public func tamis_ctx_describe(
  _ ctx: OpaquePointer?, _ text: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?
) -> tamis_status {
  boundary("tamis_ctx_describe") { () throws(TamisError) in
    let context: Context = try object(ctx, "ctx")
    let version = "\(TAMIS_VERSION_MAJOR).\(TAMIS_VERSION_MINOR).\(TAMIS_VERSION_PATCH)"
    var usable = ""
    var position: Int32 = 0
    while let name = tk_usable(position) {
      usable += (position == 0 ? "" : " ") + String(cString: name)
      position += 1
    }
    let isa = String(cString: context.kernels.pointee.name)
    let threads = context.threads == 1 ? "1 thread" : "\(context.threads) threads"
    let line = "tamis \(version), \(isa) of \(usable), \(threads), \(processorName())"
    try copyText(line.utf8, text, capacity, needed)
  }
}

func processorName() -> String {
  withUnsafeTemporaryAllocation(of: CChar.self, capacity: 96) { buffer in
    guard let start = buffer.baseAddress else { return "" }
    tk_cpu_name(start, 96)
    return String(cString: start)
  }
}
