// The database that requests ask, through a pool of four connections that all of them share: Redis,
// or PostgreSQL where POSTGRES_PORT is set.
const { REDIS_PORT, POSTGRES_PORT } = process.env;

// Resolves to what asks.
async function database() {
  if (POSTGRES_PORT) {
    const { Pool } = require('pg');
    const pool = new Pool({ host: '127.0.0.1', port: Number(POSTGRES_PORT), user: 'postgres', max: 4 });
    return () => pool.query('SELECT pg_sleep(0.001)');
  }
  const { createClientPool } = require('redis');
  const redis = createClientPool(
    { socket: { host: '127.0.0.1', port: Number(REDIS_PORT) } },
    { minimum: 4, maximum: 4 },
  );
  await redis.connect();
  return () => redis.get('visits');
}

module.exports = { database };
