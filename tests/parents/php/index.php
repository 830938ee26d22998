<?php
// Every path of the application, run by PHP-FPM or inside of Apache: curl for the calls, and Redis through persistent connections.

function handle(string $path): CurlHandle
{
    $handle = curl_init(getenv('BACKEND') . $path);
    curl_setopt($handle, CURLOPT_RETURNTRANSFER, true);
    return $handle;
}

function call(string $path): string
{
    $answer = curl_exec(handle($path));
    if ($answer === false) {
        throw new RuntimeException('the call failed');
    }
    return $answer;
}

function calls(string ...$paths): string
{
    $multi = curl_multi_init();
    $handles = array_map('handle', $paths);
    foreach ($handles as $handle) {
        curl_multi_add_handle($multi, $handle);
    }
    do {
        $status = curl_multi_exec($multi, $running);
        if ($running) {
            curl_multi_select($multi);
        }
    } while ($running && $status === CURLM_OK);
    return implode('', array_map('curl_multi_getcontent', $handles));
}

$id = (int) ($_GET['id'] ?? 0);
$path = parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH);
switch ($path) {
    case '/at-once':
        echo call("/call?id=$id");
        break;
    case '/sleep':
        usleep(10000);
        echo call("/call?id=$id");
        break;
    case '/database':
        $redis = new Redis();
        $redis->pconnect('127.0.0.1', (int) getenv('REDIS_PORT'));
        $redis->get('visits');
        echo call("/call?id=$id");
        break;
    case '/two':
        echo calls("/call?id=$id&n=1", "/call?id=$id&n=2");
        break;
    case '/after':
        header('Content-Length: 2');
        echo 'ok';
        if (function_exists('fastcgi_finish_request')) {
            fastcgi_finish_request();
        } else {
            while (ob_get_level()) {
                ob_end_flush();
            }
            flush();
        }
        usleep($id % 11 * 1000);
        call("/call?id=$id");
        break;
    case '/body':
        strlen(file_get_contents('php://input'));
        echo call("/call?id=$id");
        break;
    default:
        http_response_code(404);
}
