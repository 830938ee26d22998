<?php
// shop-offers: answers GET /offers/ID with what shop-prices says about it.
$cart = basename(parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH));
$options = ['http' => ['protocol_version' => 1.1, 'header' => 'Connection: close', 'timeout' => 10]];
$answer = file_get_contents(getenv('SHOP_PRICES') . "/prices/$cart", false, stream_context_create($options));
header('Content-Type: application/json');
if ($answer === false) {
    http_response_code(502);
}
echo json_encode(['service' => 'offers', 'cart' => $cart, 'prices' => json_decode($answer)]);
