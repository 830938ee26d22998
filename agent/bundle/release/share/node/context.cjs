// SPDX-License-Identifier: Apache-2.0
/*
 * throughline's preload for Node.js: shows which request a write to a socket is for.
 *
 *   NODE_OPTIONS=--require=FILE, which the role sets for the units that an operator names
 *
 * Node.js runs all requests on one thread, and no program outside can follow `await`. This file
 * keeps the request that is served in an AsyncLocalStorage, and shows it in 32 bytes outside of the
 * heap while bytes of a call are written. BPF programs read them there
 * (bpf/runtimes/node.h). It sends nothing, changes no request, and keeps nothing of an application.
 *
 * Nothing happens in a process that accepts no connection. Whatever fails here, the application goes
 * on without it. The syntax is that of Node.js 6: an older release must be able to parse the file.
 */
'use strict';

(function preload() {
  const MAGIC = [0x6e6c7401, 0x65646f6e]; // TL_NODE_MAGIC in bpf/runtimes/node.h
  const POSITION = 0x746c6e6f6465; // TL_NODE_POSITION
  // An agent may begin after this process, or not know its cgroup yet.
  const FIRST_MS = 250;
  const LAST_MS = 5000;
  const BUSY_NS = 100e6;
  const OLDEST = 18;
  const DISPATCHERS = ['undici.globalDispatcher.1', 'undici.globalDispatcher.2'];

  const OWNER = Symbol('throughline.owner'); // on sockets, requests: for which request they write
  const NONE = null; // for no request
  const CLOSED = 0xffffffff; // in place of a descriptor: its connection has ended
  const HTTP2 = 0xfffffffe; // the same: the request came by HTTP/2. TL_NODE_HTTP2
  // No program sees such a request: its calls have no parent.
  const BY_HTTP2 = { handle: { fd: HTTP2 - 1 }, descriptor: HTTP2, seconds: 0, nanoseconds: 0 };

  let files; // functions of `fs`: an application may replace them later, to trace or to test
  let storage;
  let AsyncResource;
  let shown; // Uint32Array: what BPF programs read
  let bytes;
  let isEmitFollowed = false; // see followEvents()
  let isFollowing = false; // did begin() succeed?
  let told = [0, 0]; // process.hrtime() when it was told last where they are

  function attempt(action) {
    return function attempted(message) {
      try {
        action(message);
      } catch (error) {
        // an exception would end the process: what is not shown has no parent
      }
    };
  }

  /** The function of this name. What is not there is not replaced, and nothing is shown then. */
  function method(target, name) {
    if (typeof target[name] !== 'function') throw new TypeError(name);
    return target[name];
  }

  // -- the 32 bytes ----------------------------------------------------------------------------

  function show(request) {
    shown[3] = request.seconds;
    shown[4] = request.nanoseconds;
    // another connection may have got the number since
    shown[2] = request.handle.fd === request.descriptor - 1 ? request.descriptor : CLOSED;
  }

  function hide() {
    shown[2] = 0;
  }

  /** Tells where the bytes are: programs see the address in the arguments of this system call. */
  function announce() {
    const file = files.open('/dev/null', files.flags); // never creates it, as 'w' would
    try {
      files.write(file, bytes, 0, bytes.length, POSITION);
    } finally {
      files.close(file);
    }
  }

  function announceAgain(wait) {
    const again = attempt(() => {
      announceAgain(Math.min(wait * 2, LAST_MS)); // first: announce() fails without a free descriptor
      announce();
    });
    setTimeout(again, wait).unref();
  }

  /** The same, while connections and requests come: a request that is read afterwards is known. */
  function announceBusy(now) {
    if ((now[0] - told[0]) * 1e9 + now[1] - told[1] < BUSY_NS) return;
    told = now;
    announce();
  }

  // -- requests that are served ----------------------------------------------------------------

  /** A connection and the time tell a request: on a connection one is served at a time. */
  function served(message) {
    const handle = message.socket._handle;
    const descriptor = handle ? handle.fd : -1;
    if (!(descriptor >= 0)) {
      storage.enterWith(undefined);
      return;
    }
    const now = process.hrtime();
    const request = { handle: handle, descriptor: descriptor + 1, seconds: now[0], nanoseconds: now[1] };
    message.socket[OWNER] = NONE; // answers need no parent
    if (isEmitFollowed) message.request[OWNER] = request;
    storage.enterWith(request);
    announceBusy(now);
  }

  /** Requests by HTTP/2 are told from tasks of the application, by the event of their server. */
  function followStreams(server) {
    const name = server && server.constructor && server.constructor.name;
    if (name !== 'Http2Server' && name !== 'Http2SecureServer') return;
    const prototype = Object.getPrototypeOf(server);
    if (patched.has(prototype)) return;
    const emit = method(prototype, 'emit');
    prototype.emit = function (event) {
      if (event !== 'stream') return emit.apply(this, arguments);
      const given = arguments;
      return storage.run(BY_HTTP2, () => emit.apply(this, given));
    };
    patched.add(prototype);
  }

  /** The body of a request is read in the context of its connection: its events are the request's. */
  function followEvents(IncomingMessage) {
    const emit = method(IncomingMessage.prototype, 'emit');
    IncomingMessage.prototype.emit = function () {
      const request = this[OWNER];
      if (request === undefined || storage.getStore() === request) return emit.apply(this, arguments);
      const given = arguments;
      return storage.run(request, () => emit.apply(this, given));
    };
    isEmitFollowed = true;
  }

  // -- calls -----------------------------------------------------------------------------------

  /**
   * A connection that is kept serves many requests: its own events are for none of them. Nor are
   * the connections of a server for the request that began to listen.
   */
  function unbind(target, name) {
    const connect = method(target, name);
    target[name] = function () {
      if (storage.getStore() === undefined) return connect.apply(this, arguments);
      const given = arguments;
      return storage.run(undefined, () => connect.apply(this, given));
    };
  }

  /** A request gets its connection in its own context, also where it has waited for one. */
  function followSockets(ClientRequest) {
    const onSocket = method(ClientRequest.prototype, 'onSocket');
    ClientRequest.prototype.onSocket = function (socket) {
      if (socket) socket[OWNER] = storage.getStore() || NONE;
      return onSocket.apply(this, arguments);
    };
  }

  function followWrites(Socket, name) {
    const write = method(Socket.prototype, name);
    Socket.prototype[name] = function (chunk, second, third) {
      let request = this[OWNER];
      if (request === NONE) return write.call(this, chunk, second, third);
      if (request === undefined) request = storage.getStore();
      if (request === undefined) return write.call(this, chunk, second, third);
      if (this.connecting) {
        // The bytes wait, and leave before other listeners run. TLS: they are given to OpenSSL then,
        // which keeps them until the handshake is done, and the programs keep what is shown.
        this.once('connect', () => show(request));
        const result = write.call(this, chunk, second, third);
        this.once('connect', hide);
        return result;
      }
      show(request);
      try {
        return write.call(this, chunk, second, third);
      } finally {
        hide();
      }
    };
  }

  // -- undici: fetch, and its own package ------------------------------------------------------
  //
  // A pool without a free connection keeps a call as an entry of its queue: { opts, handler }. It
  // takes the entry out and dispatches the call while a connection says that it is free (event
  // `drain`), in the context of another call. So the request is kept by the entry. Options and
  // handlers do not tell it: many calls may have the same, and undici replaces handlers. What a free
  // connection gets without a known entry is for no request.

  const firsts = new WeakMap(); // by handlers that dispatch their call again: for which request
  const waiting = new WeakMap(); // by entries of queues: for which request
  const searched = new WeakSet(); // dispatchers whose queue was looked for
  const patched = new WeakSet(); // prototypes, and what replaces `emit`
  const copies = new WeakMap(); // by undici's class of requests: is this copy of undici followed?
  let taken; // the entry that has left its queue last
  let free; // the dispatcher that says now that it is free

  function followDispatches(prototype) {
    const dispatch = method(prototype, 'dispatch');
    prototype.dispatch = function (options, handler) {
      findQueue(this);
      const current = storage.getStore();
      let request;
      attempt(() => {
        request = ownerOf(this, options, handler, current || NONE) || undefined;
      })();
      if (request === current) return dispatch.apply(this, arguments);
      const given = arguments;
      return storage.run(request, () => dispatch.apply(this, given));
    };
  }

  /** A dispatcher is `free` while it emits `drain`. */
  function followDrains(prototype) {
    const emit = method(prototype, 'emit');
    prototype.emit = function (name) {
      findQueue(this); // a pool whose `dispatch` was bound before is seen here only
      if (name !== 'drain') return emit.apply(this, arguments);
      const before = free;
      free = this;
      try {
        return emit.apply(this, arguments);
      } finally {
        free = before;
      }
    };
  }

  /** A call enters the queue in the context of its request, and is dispatched as soon as it is taken. */
  function followQueue(prototype) {
    const push = method(prototype, 'push');
    const shift = method(prototype, 'shift');
    prototype.push = function (entry) {
      attempt(() => waiting.set(entry, firstOf(entry.handler, storage.getStore() || NONE)))();
      return push.apply(this, arguments);
    };
    prototype.shift = function () {
      taken = shift.apply(this, arguments);
      return taken;
    };
  }

  function isObject(value) {
    return value !== null && typeof value === 'object';
  }

  function has(target, name) {
    return Object.prototype.hasOwnProperty.call(target, name);
  }

  /** Is it a handler that undici has made for one call, and that dispatches this call again? */
  function isAgain(handler) {
    const kind = handler.constructor && handler.constructor.name;
    const isOne = kind === 'RedirectHandler' || kind === 'RetryHandler';
    return isOne && typeof handler.dispatch === 'function' && isObject(handler.handler);
  }

  /** Such a handler may be called in any context: its call is for the request of the first time. */
  function firstOf(handler, current) {
    return firsts.has(handler) ? firsts.get(handler) : current;
  }

  /** For which request a call is dispatched. `current`: that of the context. */
  function ownerOf(dispatcher, options, handler, current) {
    const entry = taken;
    taken = undefined;
    if (!isObject(handler)) return current;
    const isTaken = isObject(entry) && entry.opts === options && entry.handler === handler;
    let owner = firstOf(handler, current);
    if (free === dispatcher) owner = (isTaken && waiting.get(entry)) || NONE;
    // taken for a new connection; or dropped by a pool that is destroyed, and this is another call
    else if (isTaken) owner = NONE;
    if (owner !== NONE && isElsewhere(handler, owner)) owner = NONE;
    if (isAgain(handler) && !firsts.has(handler)) firsts.set(handler, owner);
    return owner;
  }

  /**
   * The handlers of undici's request(), stream() and so on keep the context of their call. A
   * dispatcher of the application may have kept the call, and dispatch it in another context.
   */
  function isElsewhere(handler, owner) {
    if (!(handler instanceof AsyncResource)) return false;
    return handler.runInAsyncScope(() => storage.getStore() || NONE) !== owner;
  }

  /** Follows the queues of all pools of this copy of undici, where the dispatcher is a pool. */
  function findQueue(dispatcher) {
    if (searched.has(dispatcher)) return;
    attempt(() => {
      searched.add(dispatcher);
      for (const symbol of Object.getOwnPropertySymbols(dispatcher)) {
        const prototype = isObject(dispatcher[symbol]) && Object.getPrototypeOf(dispatcher[symbol]);
        if (!prototype || patched.has(prototype)) continue;
        if (!['push', 'shift', 'isEmpty'].every((name) => has(prototype, name))) continue;
        followQueue(prototype);
        patched.add(prototype);
      }
    })();
  }

  /** Follows all dispatchers of the copy of undici that `dispatcher` is of. */
  function followCopy(dispatcher) {
    // without events it is an application's own, and its calls pass undici's dispatchers later
    if (!dispatcher || typeof dispatcher.emit !== 'function') return;
    let last;
    for (
      let found = dispatcher;
      found && found !== Object.prototype;
      found = Object.getPrototypeOf(found)
    ) {
      if (!has(found, 'dispatch')) continue;
      last = found;
      if (patched.has(found)) continue;
      followDispatches(found);
      patched.add(found);
    }
    if (!last || patched.has(last.emit)) return;
    followDrains(last);
    patched.add(last.emit);
  }

  function created(message) {
    message.request[OWNER] = storage.getStore() || NONE;
    for (const name of DISPATCHERS) attempt(() => followCopy(globalThis[Symbol.for(name)]))();
  }

  /**
   * Node.js and packages may each have a copy of undici. The socket of a call refers to its client.
   * Where a method cannot be replaced, calls that have waited could not be told from others.
   */
  function isFollowed(message) {
    const copy = message.request.constructor;
    if (!copies.has(copy)) {
      copies.set(copy, false); // if an exception ends this
      for (const symbol of Object.getOwnPropertySymbols(message.socket)) {
        const value = message.socket[symbol];
        if (isObject(value) && typeof value.dispatch === 'function') followCopy(value);
      }
      copies.set(copy, true);
    }
    return copies.get(copy);
  }

  function sending(message) {
    message.socket[OWNER] = NONE;
    if (isFollowed(message)) message.socket[OWNER] = message.request[OWNER] || NONE;
  }

  // -- the start -------------------------------------------------------------------------------

  function begin(subscribe) {
    const http = require('http');
    const net = require('net');
    const tls = require('tls');
    const hooks = require('async_hooks');
    const memory = new ArrayBuffer(32); // never inside of the heap
    AsyncResource = hooks.AsyncResource;
    storage = new hooks.AsyncLocalStorage();
    shown = new Uint32Array(memory);
    bytes = Buffer.from(memory);
    shown.set(MAGIC);
    if (parseInt(process.versions.node, 10) >= 22) followEvents(http.IncomingMessage);
    followSockets(http.ClientRequest);
    followWrites(net.Socket, '_write');
    followWrites(net.Socket, '_writev');
    unbind(net.Socket.prototype, 'connect');
    unbind(net.Server.prototype, 'listen');
    unbind(tls, 'connect');
    subscribe('undici:request:create', attempt(created));
    subscribe('undici:client:sendHeaders', attempt(sending));
    subscribe('http.server.request.start', attempt(served)); // last: before, nothing is shown
    isFollowing = true;
    // Only now: where something above fails, nothing tells that this is Node.js with the preload.
    announceAgain(FIRST_MS);
    announce();
  }

  /**
   * Children of root may run as another user, who cannot read the copy that systemd has made: the
   * option leaves the environment. What is forked of this program gets it as an argument, as long as
   * it is root's, too.
   */
  function leaveEnvironment() {
    const options = process.env.NODE_OPTIONS;
    if (process.getuid() !== 0 || !options || __filename.indexOf('/run/credentials/') !== 0) return;
    const ours = `--require=${__filename}`;
    const others = options.split(' ').filter((word) => word !== ours);
    if (others.length) process.env.NODE_OPTIONS = others.join(' ');
    else delete process.env.NODE_OPTIONS;
    const ChildProcess = require('child_process').ChildProcess;
    const spawn = method(ChildProcess.prototype, 'spawn');
    ChildProcess.prototype.spawn = function (given) {
      const isRoot = process.getuid() === 0 && !(given && (given.uid || given.gid));
      if (!isRoot && given && Array.isArray(given.args)) {
        given.args = given.args.filter((word) => word !== ours);
      }
      return spawn.apply(this, arguments);
    };
    if (process.execArgv.indexOf(ours) < 0) process.execArgv.push(ours);
  }

  function start() {
    leaveEnvironment();
    if (process.platform !== 'linux' || !(parseInt(process.versions.node, 10) >= OLDEST)) return;
    const channels = require('diagnostics_channel');
    const kept = [];
    const fs = require('fs');
    const flags = fs.constants.O_WRONLY;
    files = { open: fs.openSync, write: fs.writeSync, close: fs.closeSync, flags: flags };
    const subscribe = function (name, listener) {
      const channel = channels.channel(name);
      kept.push(channel); // a channel that nothing refers to loses its listeners in Node.js 18.6
      channel.subscribe(listener);
    };
    const connected = attempt((message) => {
      announceBusy(process.hrtime());
      followStreams(message.socket.server);
    });
    let begun = false;
    subscribe('net.server.socket', function accepted(message) {
      if (!begun) {
        begun = true;
        attempt(() => begin(subscribe))();
      }
      if (isFollowing) connected(message);
    });
  }

  attempt(start)();
}());
