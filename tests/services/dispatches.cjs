// node --require=shown.cjs --require=PRELOAD dispatches.cjs SCENARIO: calls of undici, and as JSON for
// which requests they were shown. UNDICI: a folder with the package; else Node.js' own copy.
const { begin, answer, callers } = require('./shown.cjs');

const { UNDICI } = process.env;
const DISPATCHERS = [2, 1].map((number) => Symbol.for(`undici.globalDispatcher.${number}`));
const ignore = () => {};
// of both kinds: undici 7 takes the newer methods, and puts the handler into one of its own
const handler = Object.fromEntries(
  ['Connect', 'Headers', 'Data', 'Complete', 'Error', 'RequestStart']
    .concat(['ResponseStart', 'ResponseData', 'ResponseEnd', 'ResponseError'])
    .map((name) => [`on${name}`, ignore]),
);
let origin;
let ask;
let options;

// A copy of the package that the preload does not know before its first connection.
function secondCopy() {
  require(UNDICI);
  for (const file of Object.keys(require.cache)) {
    if (file.startsWith(UNDICI)) delete require.cache[file];
  }
  return require(UNDICI);
}

// A pool, by Node.js' own copy an agent with one.
async function pool(connections) {
  if (UNDICI) return new (require(UNDICI).Pool)(origin, { connections });
  await fetch('data:,'); // loads it
  const agent = DISPATCHERS.map((symbol) => globalThis[symbol]).find(Boolean);
  return new agent.constructor({ connections });
}

// As setGlobalDispatcher() of any copy does it.
function setGlobal(dispatcher) {
  for (const symbol of DISPATCHERS) globalThis[symbol] = dispatcher;
}

async function each(numbers, handle) {
  for (const number of numbers) await ask(number, () => handle(number));
}

const scenarios = {
  // Four calls with the same options and handler for two connections.
  async waiting() {
    const dispatcher = await pool(2);
    await each([1, 2, 3, 4], () => dispatcher.dispatch(options, handler));
    await answer(2);
    return callers(4);
  },

  // 2 and 3 wait before the copy is known, 4 after it.
  async late() {
    const dispatcher = new (secondCopy().Pool)(origin, { connections: 1 });
    const dispatch = () => dispatcher.dispatch(options, handler);
    await ask(1, () => [1, 2, 3].forEach(dispatch));
    await callers(1);
    await ask(4, dispatch);
    await answer(3);
    return callers(4);
  },

  // `dispatch` is bound before the copy is known, as compose() does it.
  async bound() {
    const dispatcher = await pool(2);
    const dispatch = dispatcher.dispatch.bind(dispatcher);
    await each([1, 2, 3], () => dispatch(options, handler));
    await ask(4, () => dispatcher.dispatch(options, handler));
    await answer(2);
    return callers(4);
  },

  // An application's global dispatcher without events.
  async plain() {
    const real = await pool(4);
    const dispatcher = { dispatch: (given, other) => real.dispatch(given, other) };
    setGlobal(Object.freeze(dispatcher));
    await each([1, 2, 3], () => {
      fetch(`${origin}/call`).catch(ignore);
    });
    return callers(3);
  },

  // The pool drops a call that waits.
  async destroyed() {
    const first = await pool(2);
    await each([1, 2, 3], () => first.dispatch(options, handler));
    first.destroy();
    const second = await pool(2);
    await each([4, 5], () => second.dispatch(options, handler));
    return callers(4);
  },

  // A call that fails at once waits nowhere.
  async closed() {
    const first = await pool(2);
    await ask(1, () => first.dispatch(options, handler));
    first.close();
    await ask(2, () => first.dispatch(options, handler));
    const second = await pool(2);
    await each([3, 4], () => second.dispatch(options, handler));
    return callers(3);
  },

  // Methods of the first copy cannot be replaced: its calls, and those of another copy.
  async frozen() {
    const { Pool } = require(UNDICI);
    for (let found = Pool.prototype; found.dispatch; found = Object.getPrototypeOf(found)) {
      Object.freeze(found);
    }
    const first = new Pool(origin, { connections: 1 });
    await each([1, 2], () => first.dispatch(options, handler));
    await answer(1);
    const second = new (secondCopy().Pool)(origin, { connections: 2 });
    await each([3, 4], () => second.dispatch(options, handler));
    return callers(4);
  },

  // An application's own class, as the global dispatcher, has an argument more.
  async subclass() {
    const { constructor } = await pool(2);
    const more = [];
    class Mine extends constructor {
      dispatch(given, other, third) {
        more.push(third);
        return super.dispatch(given, other);
      }
    }
    const mine = UNDICI ? new Mine(origin) : new Mine();
    setGlobal(mine);
    await each([1, 2, 3], (number) => mine.dispatch(options, handler, `third of ${number}`));
    return [...(await callers(3)), ...more];
  },
};

// An application's own class, which keeps calls and dispatches them while it serves another request.
scenarios.kept = async () => {
  const { Dispatcher, Pool, request } = require(UNDICI);
  const real = new Pool(origin, { connections: 4 });
  const kept = [];
  class Mine extends Dispatcher {
    dispatch(given, other) {
      kept.push(() => real.dispatch(given, other));
      return true;
    }
  }
  const call = (dispatcher) => {
    request(`${origin}/call`, { dispatcher }).catch(ignore);
  };
  const mine = new Mine();
  await ask(1, () => call(real));
  await callers(1);
  await each([2, 3], () => call(mine));
  await ask(4, () => kept.forEach((dispatch) => dispatch()));
  await ask(5, () => call(real));
  return callers(4);
};

async function main() {
  ({ origin, ask } = await begin());
  options = { origin, path: '/call', method: 'GET' };
  console.log(JSON.stringify(await scenarios[process.argv[2]]()));
  process.exit();
}

main();
