// NestJS on Express, with its HttpService, and Redis through a pool of clients.
import 'reflect-metadata';
import { Agent } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import { HttpModule, HttpService } from '@nestjs/axios';
import { Body, Controller, Get, HttpCode, Injectable, Logger, Module, Post, Query } from '@nestjs/common';
import type { OnModuleInit } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import type { NestExpressApplication } from '@nestjs/platform-express';
import fastq from 'fastq';
import { createClientPool } from 'redis';
import { firstValueFrom } from 'rxjs';

const { PORT, BACKEND, REDIS_PORT, POLLER } = process.env;

@Injectable()
class Backend implements OnModuleInit {
  private readonly queue = fastq.promise((path: string) => this.call(path), 4);

  constructor(private readonly http: HttpService) {}

  onModuleInit(): void {
    if (POLLER) {
      let polls = 0;
      setInterval(() => this.send(`/poll?id=${polls++}`), 20);
    }
  }

  async call(path: string): Promise<string> {
    return (await firstValueFrom(this.http.get<string>(path))).data;
  }

  enqueue(path: string): Promise<string> {
    return this.queue.push(path);
  }

  send(path: string): void {
    this.call(path).catch((error) => Logger.error(error));
  }
}

@Injectable()
class Store implements OnModuleInit {
  private readonly redis = createClientPool(
    { socket: { host: '127.0.0.1', port: Number(REDIS_PORT) } },
    { minimum: 4, maximum: 4 },
  );

  async onModuleInit(): Promise<void> {
    await this.redis.connect();
  }

  get(key: string): Promise<unknown> {
    return this.redis.get(key);
  }
}

@Controller()
class Calls {
  constructor(
    private readonly backend: Backend,
    private readonly store: Store,
  ) {}

  @Get('at-once')
  atOnce(@Query('id') id: string): Promise<string> {
    return this.backend.call(`/call?id=${id}`);
  }

  @Get('sleep')
  async sleep(@Query('id') id: string): Promise<string> {
    await sleep(10);
    return this.backend.call(`/call?id=${id}`);
  }

  @Get('database')
  async database(@Query('id') id: string): Promise<string> {
    await this.store.get('visits');
    return this.backend.call(`/call?id=${id}`);
  }

  @Get('two')
  async two(@Query('id') id: string): Promise<string> {
    const paths = [`/call?id=${id}&n=1`, `/call?id=${id}&n=2`];
    return (await Promise.all(paths.map((path) => this.backend.call(path)))).join('');
  }

  @Get('pool')
  pool(@Query('id') id: string): Promise<string> {
    return this.backend.enqueue(`/call?id=${id}`);
  }

  @Get('after')
  after(@Query('id') id: string): string {
    setTimeout(() => this.backend.send(`/call?id=${id}`), Number(id) % 11);
    return 'ok';
  }

  @Post('body')
  @HttpCode(200)
  body(@Query('id') id: string, @Body() _: string): Promise<string> {
    return this.backend.call(`/call?id=${id}`);
  }
}

@Module({
  imports: [
    HttpModule.register({
      baseURL: BACKEND,
      httpAgent: new Agent({ keepAlive: true }),
      responseType: 'text',
    }),
  ],
  controllers: [Calls],
  providers: [Backend, Store],
})
class Application {}

async function main(): Promise<void> {
  const application = await NestFactory.create<NestExpressApplication>(Application, { logger: ['error'], bodyParser: false });
  application.useBodyParser('text', { limit: '1mb' });
  await application.listen(Number(PORT), '127.0.0.1');
}

void main();
