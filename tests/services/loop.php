<?php
// A PHP service that is an event loop, as with ReactPHP, Amp, Workerman or Swoole: PORT NEXT_PORT. One process serves
// all requests: it calls 0 to 10 ms after it has read one, and answers when the answer has come.
[, $port, $next] = $argv;
$context = stream_context_create(['socket' => ['backlog' => 512]]);
$flags = STREAM_SERVER_BIND | STREAM_SERVER_LISTEN;
$server = stream_socket_server("tcp://127.0.0.1:$port", $code, $message, $flags, $context);
$clients = []; // by number: stream
$calls = [];   // by number: stream, and the client that waits for it
$timers = [];  // when, client, path

function call(string $path, $client): void
{
    global $calls, $next;
    $stream = stream_socket_client("tcp://127.0.0.1:$next");
    fwrite($stream, "GET $path HTTP/1.1\r\nHost: next\r\n\r\n");
    $calls[(int) $stream] = [$stream, $client];
}

function read_request($client): void
{
    global $clients, $timers;
    $head = fread($client, 65536);
    if ($head === '' || $head === false) {
        unset($clients[(int) $client]);
        fclose($client);
        return;
    }
    $timers[] = [microtime(true) + mt_rand(0, 10) / 1000, $client, explode(' ', $head)[1]];
}

function read_answer(array $call): void
{
    global $calls;
    [$stream, $client] = $call;
    fread($stream, 65536); // it is short
    unset($calls[(int) $stream]);
    fclose($stream);
    fwrite($client, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
}

for (;;) {
    $wait = $timers ? max(0, min(array_column($timers, 0)) - microtime(true)) : 1;
    $ready = [$server, ...array_values($clients), ...array_column($calls, 0)];
    $none = null;
    stream_select($ready, $none, $none, 0, (int) ($wait * 1e6));
    foreach ($ready as $stream) {
        if ($stream === $server) {
            $client = stream_socket_accept($server, 0);
            $clients[(int) $client] = $client;
        } elseif (isset($calls[(int) $stream])) {
            read_answer($calls[(int) $stream]);
        } else {
            read_request($stream);
        }
    }
    foreach ($timers as $at => [$when, $client, $path]) {
        if ($when <= microtime(true)) {
            unset($timers[$at]);
            call($path, $client);
        }
    }
}
