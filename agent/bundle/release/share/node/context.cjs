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
  const OLDEST = 18;
  const DISPATCHERS = ['undici.globalDispatcher.1', 'undici.globalDispatcher.2'];

  const OWNER = Symbol('throughline.owner'); // on sockets, requests: for which request they write
  const NONE = null; // for no request
  const CLOSED = 0xffffffff; // in place of a descriptor: its connection has ended

  let fs;
  let storage;
  let shown; // Uint32Array: what BPF programs read
  let bytes;

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
    const file = fs.openSync('/dev/null', 'w');
    try {
      fs.writeSync(file, bytes, 0, bytes.length, POSITION);
    } finally {
      fs.closeSync(file);
    }
  }

  function announceAgain(wait) {
    const again = attempt(() => {
      announce();
      announceAgain(Math.min(wait * 2, LAST_MS));
    });
    setTimeout(again, wait).unref();
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
    message.request[OWNER] = request;
    storage.enterWith(request);
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
  }

  // -- calls -----------------------------------------------------------------------------------

  /** A connection that is kept serves many requests: its own events are for none of them. */
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

  const handlers = new WeakMap(); // of dispatched calls: their dispatches, by options
  const owners = new WeakMap(); // by options: for which request, NONE where for several
  const patched = new WeakSet();
  let depth = 0;

  /** A call that waits for a connection is dispatched again, in the context of another one. */
  function followDispatches(prototype) {
    const dispatch = method(prototype, 'dispatch');
    prototype.dispatch = function (options, handler) {
      let request = storage.getStore();
      const current = request;
      if (isObject(handler) && isObject(options)) {
        request = ownerOf(this, options, handler, current) || undefined;
      }
      depth++;
      try {
        if (request === current) return dispatch.call(this, options, handler);
        return storage.run(request, () => dispatch.call(this, options, handler));
      } finally {
        depth--;
      }
    };
  }

  function isObject(value) {
    return value !== null && typeof value === 'object';
  }

  /** Is the handler one of undici's own, of this kind? */
  function isKind(handler, kind) {
    return handler.constructor && handler.constructor.name === kind;
  }

  /**
   * For which request a call is dispatched, now or again. An application may use a handler for many
   * calls, and even its options: where the same are dispatched for another request, it is not known
   * which of them waits.
   */
  function ownerOf(dispatcher, options, handler, current) {
    let dispatches = handlers.get(handler);
    const known = dispatches && dispatches.byOptions.get(options);
    const isAgain = isKind(handler, 'RedirectHandler') || isKind(handler, 'RetryHandler');
    if (known !== undefined) {
      // one dispatcher hands the call to another, at once or when that is free
      if (!depth && known.dispatcher === dispatcher && known.owner !== (current || NONE) && !isAgain) {
        known.owner = NONE;
        owners.set(options, NONE);
      }
      return known.owner;
    }
    let owner = current || NONE;
    // undici has put the caller's handler into one of its own
    if (!depth && isKind(handler, 'UnwrapHandler')) owner = owners.get(options) || NONE;
    if (!depth && isAgain && dispatches) owner = dispatches.first;
    if (!dispatches) {
      dispatches = { byOptions: new WeakMap(), first: owner };
      handlers.set(handler, dispatches);
    }
    const before = owners.get(options);
    owners.set(options, before === undefined || before === owner ? owner : NONE);
    dispatches.byOptions.set(options, { dispatcher: dispatcher, owner: owner });
    return owner;
  }

  function findDispatchers() {
    for (const name of DISPATCHERS) {
      let found = globalThis[Symbol.for(name)];
      while (found && found !== Object.prototype) {
        if (Object.prototype.hasOwnProperty.call(found, 'dispatch') && !patched.has(found)) {
          patched.add(found);
          followDispatches(found);
        }
        found = Object.getPrototypeOf(found);
      }
    }
  }

  function created(message) {
    findDispatchers();
    message.request[OWNER] = storage.getStore() || NONE;
  }

  function sending(message) {
    message.socket[OWNER] = message.request[OWNER] || NONE;
  }

  // -- the start -------------------------------------------------------------------------------

  function begin(subscribe) {
    const http = require('http');
    const net = require('net');
    const tls = require('tls');
    const AsyncLocalStorage = require('async_hooks').AsyncLocalStorage;
    const memory = new ArrayBuffer(32); // never inside of the heap
    storage = new AsyncLocalStorage();
    shown = new Uint32Array(memory);
    bytes = Buffer.from(memory);
    shown.set(MAGIC);
    announce();
    if (parseInt(process.versions.node, 10) >= 22) followEvents(http.IncomingMessage);
    followSockets(http.ClientRequest);
    followWrites(net.Socket, '_write');
    followWrites(net.Socket, '_writev');
    unbind(net.Socket.prototype, 'connect');
    unbind(tls, 'connect');
    subscribe('undici:request:create', attempt(created));
    subscribe('undici:client:sendHeaders', attempt(sending));
    subscribe('http.server.request.start', attempt(served)); // last: before, nothing is shown
    announceAgain(FIRST_MS);
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
    fs = require('fs');
    const subscribe = function (name, listener) {
      const channel = channels.channel(name);
      kept.push(channel); // a channel that nothing refers to loses its listeners in Node.js 18.6
      channel.subscribe(listener);
    };
    let begun = false;
    subscribe('net.server.socket', function accepted() {
      if (begun) return;
      begun = true;
      attempt(() => begin(subscribe))();
    });
  }

  attempt(start)();
}());
