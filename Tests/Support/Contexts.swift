// Contexts for tests, the instruction sets that they can be capped at, and what a refused call throws.

import TamisKernels
package import TamisRuntime

/// The caps that choose each table of this machine, weakest first.
package let usableISAs: [String] = {
  var names: [String] = []
  while let name = tk_usable(Int32(names.count)) { names.append(String(cString: name)) }
  return names
}()

package func makeContext(threads: UInt32 = 2, isa: String? = nil, maxBytes: UInt64 = 0) throws -> Context {
  var options = ContextOptions()
  options.threads = threads
  options.isaCap = isa
  options.maxBytes = maxBytes
  return try Context.create(options)
}

/// The status a call throws, .ok when it does not.
package func status(_ body: () throws -> Void) -> Status {
  do {
    try body()
    return .ok
  } catch {
    return (error as? TamisError)?.status ?? .internal
  }
}
