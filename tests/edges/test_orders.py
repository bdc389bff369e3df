"""Order reports as sellers have them, and as they go wrong."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from daemon.edges.orders import FolderReports, HttpOrders, MemoryShelf, OrderBook, SqlOrders, values
from daemon.edges.orders.reader import scan
from daemon.errors import ConfigError, Permanent, Transient
from daemon.steps.enrich import ROW_FIELDS, merge
from daemon.vocab import Fulfilment, OrderFacts, OrderId, OrderState

NOW = datetime(2026, 11, 24, 9, tzinfo=UTC)
DAY = timedelta(hours=24)
ID = "302-4471926-8830517"
OTHER = "302-4471926-8830518"


def tsv(*rows: dict[str, str], ending: str = "\n") -> str:
    head = list(dict.fromkeys(k for r in rows for k in r))
    return ending.join(["\t".join(head), *("\t".join(r.get(h, "") for h in head) for r in rows)]) + ending


def put(
    folder: Path, name: str, text: str | bytes, *, encoding: str = "utf-8", at: datetime = NOW - timedelta(hours=1)
) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    os.utime(path, (at.timestamp(), at.timestamp()))
    return path


class Desk:
    """A folder, a shelf, and short questions to both."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder, self.shelf = folder, MemoryShelf()
        self.reports = FolderReports(folder, **options)
        self.book = OrderBook(self.shelf, folders=[self.reports])

    def load(self) -> int:
        return asyncio.run(self.book.refresh())

    def facts(
        self, order_id: str = ID, shop: str = "amazon", *, now: datetime = NOW, stale: timedelta = DAY
    ) -> OrderFacts | None:
        order = OrderId(order_id, shop, "wrapper")
        return merge(asyncio.run(self.book.lookup([order], now))[order], now, stale)

    def known(self, order_id: str = ID, shop: str = "amazon", **options: Any) -> OrderFacts:
        found = self.facts(order_id, shop, **options)
        assert found is not None
        return found

    def report(self, path: Path) -> dict[str, Any]:
        return self.shelf._reports[str(path)]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


# --------------------------------------------------------------------------- the formats


def all_orders(**changes: str) -> dict[str, str]:
    return {
        "amazon-order-id": ID, "merchant-order-id": "", "purchase-date": "2026-11-16T21:03:11+00:00", "last-updated-date": "2026-11-18T08:00:00+00:00",
        "order-status": "Shipped", "fulfillment-channel": "Merchant", "sales-channel": "Amazon.de", "order-channel": "", "url": "",
        "ship-service-level": "Standard", "product-name": 'Tischlampe 27" Eiche', "sku": "LAMP-1", "asin": "B0TESTLAMP", "item-status": "Shipped",
        "quantity": "2", "currency": "EUR", "item-price": "49.80", "item-tax": "7.95", "shipping-price": "4.99", "shipping-tax": "0.80",
        "item-promotion-discount": "1.00", "ship-promotion-discount": "", "ship-country": "DE", "a-column-of-next-year": "x", **changes,
    }  # fmt: skip


def unshipped(**changes: str) -> dict[str, str]:
    return {
        "order-id": ID, "order-item-id": "11", "purchase-date": "2026-11-23T21:03:11+00:00", "payments-date": "2026-11-23T21:03:11+00:00", "reporting-date": "2026-11-24",
        "promise-date": "2026-11-26T22:59:59+00:00", "days-past-promise": "-2", "buyer-email": "abc123@marketplace.amazon.de", "buyer-name": "Katrin Vollmer",
        "buyer-phone-number": "", "sku": "LAMP-1", "product-name": "Tischlampe", "quantity-purchased": "1", "quantity-shipped": "0", "quantity-to-ship": "1",
        "ship-country": "DE", "sales-channel": "Amazon.de", "is-prime": "false", "is-buyer-requested-cancellation": "false", "buyer-requested-cancel-reason": "", **changes,
    }  # fmt: skip


def fba_shipment(**changes: str) -> dict[str, str]:
    return {
        "amazon-order-id": ID, "merchant-order-id": "", "shipment-id": "S1", "shipment-item-id": "D1", "amazon-order-item-id": "11", "purchase-date": "2026-11-16T10:00:00+00:00",
        "payments-date": "", "shipment-date": "2026-11-18T10:00:00+00:00", "reporting-date": "2026-11-18T12:00:00+00:00", "buyer-email": "abc123@marketplace.amazon.de",
        "buyer-name": "Katrin", "sku": "LAMP-1", "product-name": "Tischlampe", "quantity-shipped": "1", "currency": "EUR", "item-price": "24.90", "shipping-price": "0.00",
        "carrier": "DHL", "tracking-number": "JJD000390007881254", "estimated-arrival-date": "2026-11-21T22:00:00+00:00", "fulfillment-center-id": "LEJ1", "fulfillment-channel": "AFN",
        "sales-channel": "Amazon.de", **changes,
    }  # fmt: skip


def test_all_orders(desk: Desk) -> None:
    put(
        desk.folder,
        "123456789012.txt",
        tsv(
            all_orders(),
            all_orders(
                sku="SHADE",
                **{
                    "product-name": "Schirm",
                    "item-price": "10.00",
                    "quantity": "1",
                    "shipping-price": "0",
                    "item-promotion-discount": "",
                },
            ),
        ),
    )
    assert desk.load() == 1
    facts = desk.known()
    assert (facts.state, facts.fulfilment, facts.site) == (OrderState.SHIPPED, Fulfilment.FBM, "amazon.de")
    assert [(i.title, i.quantity) for i in facts.items] == [('Tischlampe 27" Eiche', 2), ("Schirm", 1)]
    assert (facts.value, facts.currency) == (Decimal("63.79"), "EUR")
    assert facts.purchased_on == date(2026, 11, 16)
    assert facts.as_of == NOW - timedelta(hours=1)
    assert facts.source.startswith("123456789012.txt@")
    assert not facts.parcels


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("Pending", "pending"), ("Unshipped", "unshipped"), ("Shipped", "shipped"), ("Cancelled", "cancelled"), ("Canceled", "cancelled"),
        ("Shipped - Delivered to Buyer", "delivered"), ("Shipped - Returned to Seller", "returned"), ("Shipped - Returning to Seller", "in_transit"),
        ("Shipped - Out for Delivery", "in_transit"), ("Shipped - Picked Up", "delivered"), ("Something New", "unknown"), ("", "unknown"),
    ],
)  # fmt: skip
def test_order_status(desk: Desk, status: str, state: str) -> None:
    put(desk.folder, "a.txt", tsv(all_orders(**{"order-status": status})))
    desk.load()
    assert desk.known().state == state


def test_unshipped_report_ties_the_alias_to_the_order(desk: Desk) -> None:
    put(
        desk.folder,
        "u.txt",
        tsv(unshipped(**{"is-buyer-requested-cancellation": "true", "buyer-requested-cancel-reason": "Ordered by mistake"})),
    )
    desk.load()
    facts = desk.known()
    assert (facts.state, facts.fulfilment) == (OrderState.UNSHIPPED, Fulfilment.FBM)
    assert facts.buyer_addr == "abc123@marketplace.amazon.de"
    assert (facts.cancel_requested, facts.cancel_reason) == (True, "Ordered by mistake")
    assert facts.ship_by == date(2026, 11, 26)


def test_an_order_that_a_newer_unshipped_report_leaves_out_is_no_longer_unshipped(desk: Desk) -> None:
    put(desk.folder, "morning.txt", tsv(unshipped(), unshipped(**{"order-id": OTHER})), at=NOW - timedelta(hours=4))
    desk.load()
    assert desk.known().state is OrderState.UNSHIPPED
    put(desk.folder, "noon.txt", tsv(unshipped(**{"order-id": OTHER})), at=NOW - timedelta(hours=1))
    desk.load()
    assert desk.known().state is OrderState.UNKNOWN
    assert desk.known(OTHER).state is OrderState.UNSHIPPED
    put(desk.folder, "france.txt", tsv(unshipped(**{"order-id": "402-0000000-0000001", "sales-channel": "Amazon.fr"})), at=NOW)
    desk.load()
    assert desk.known(OTHER).state is OrderState.UNSHIPPED, "another site's report says nothing about this one"


def test_order_report_without_quantities_shipped_says_nothing_about_the_state(desk: Desk) -> None:
    row = {k: v for k, v in unshipped().items() if k not in ("quantity-shipped", "quantity-to-ship", "days-past-promise")}
    put(desk.folder, "o.txt", tsv(row))
    desk.load()
    assert desk.known().state is OrderState.UNKNOWN


def test_partial_shipment(desk: Desk) -> None:
    put(desk.folder, "u.txt", tsv(unshipped(**{"quantity-purchased": "3", "quantity-shipped": "1", "quantity-to-ship": "2"})))
    desk.load()
    assert desk.known().partially_shipped
    put(
        desk.folder,
        "a.txt",
        tsv(
            all_orders(**{"amazon-order-id": OTHER}),
            all_orders(**{"amazon-order-id": OTHER, "sku": "B", "item-status": "Unshipped"}),
        ),
    )
    desk.load()
    assert desk.known(OTHER).partially_shipped


def test_fba_shipments_in_several_parcels(desk: Desk) -> None:
    second = fba_shipment(
        **{
            "shipment-id": "S2",
            "sku": "SHADE",
            "product-name": "Schirm",
            "tracking-number": "JJD000390007881255",
            "shipment-date": "2026-11-19T10:00:00+00:00",
        }
    )
    put(desk.folder, "f.txt", tsv(fba_shipment(), second))
    desk.load()
    facts = desk.known()
    assert (facts.state, facts.fulfilment) == (OrderState.SHIPPED, Fulfilment.FBA)
    assert [(p.carrier, p.tracking, p.shipped_on, p.eta) for p in facts.parcels] == [
        ("DHL", "JJD000390007881254", date(2026, 11, 18), date(2026, 11, 21)),
        ("DHL", "JJD000390007881255", date(2026, 11, 19), date(2026, 11, 21)),
    ]
    assert len(facts.items) == 2


@pytest.mark.parametrize(
    ("disposition", "kept"), [("SELLABLE", "sellable"), ("CUSTOMER_DAMAGED", "damaged"), ("DEFECTIVE", "defective")]
)
def test_fba_returns(desk: Desk, disposition: str, kept: str) -> None:
    put(desk.folder, "f.txt", tsv(fba_shipment()))
    put(desk.folder, "r.txt", tsv({
        "return-date": "2026-11-23T10:00:00+00:00", "order-id": ID, "sku": "LAMP-1", "asin": "B0", "fnsku": "X0", "product-name": "Tischlampe", "quantity": "1",
        "fulfillment-center-id": "LEJ1", "detailed-disposition": disposition, "reason": "UNWANTED_ITEM", "status": "Unit returned to inventory", "license-plate-number": "LPN1", "customer-comments": "",
    }))  # fmt: skip
    assert desk.load() == 2
    facts = desk.known()
    assert (facts.state, facts.return_state, facts.return_disposition) == (OrderState.RETURNED, "received", kept)


def test_one_of_two_units_back_is_not_the_order_back(desk: Desk) -> None:
    put(desk.folder, "f.txt", tsv(fba_shipment(**{"quantity-shipped": "2"})))
    put(
        desk.folder,
        "r.txt",
        tsv(
            {"return-date": "2026-11-23", "order-id": ID, "sku": "LAMP-1", "quantity": "1", "detailed-disposition": "SELLABLE"}
        ),
    )
    desk.load()
    assert desk.known().state is OrderState.SHIPPED
    assert desk.known().return_state == "received"


def test_fbm_returns(desk: Desk) -> None:
    row = {
        "Order ID": ID, "Order date": "2026-11-10", "Return request date": "2026-11-20", "Return request status": "Approved", "Amazon RMA ID": "DR1", "Currency code": "EUR",
        "Tracking ID": "RETURN1", "Return carrier": "DHL", "Item Name": "Tischlampe", "Merchant SKU": "LAMP-1", "Return quantity": "1", "Order quantity": "1", "Refunded Amount": "0.00", "Return delivery date": "",
    }  # fmt: skip
    put(desk.folder, "r.tsv", tsv(row))
    desk.load()
    facts = desk.known()
    assert facts.return_state == "authorized"
    assert facts.refunded is None
    assert facts.parcels == (), "the parcel of the return is not the parcel to the buyer"
    put(desk.folder, "r.tsv", tsv({**row, "Return delivery date": "2026-11-23", "Refunded Amount": "24.90"}), at=NOW)
    desk.load()
    assert desk.known().return_state == "received"
    assert desk.known().refunded == Decimal("24.90")


SHOPIFY = """Name,Email,Financial Status,Paid at,Fulfillment Status,Fulfilled at,Currency,Total,Created at,Lineitem quantity,Lineitem name,Lineitem price,Lineitem sku,Lineitem fulfillment status,Billing Name,Shipping Country,Cancelled at,Refunded Amount,Id,Shipping Zip
#LO1001,harriet@mail.example,paid,2026-11-16 10:00:00 +0000,fulfilled,2026-11-18 09:00:00 +0000,EUR,64.90,2026-11-16 09:58:00 +0000,1,"Desk lamp, oak",49.90,LAMP-1,fulfilled,Harriet Lowe,GB,,0.00,55,'01234
#LO1001,harriet@mail.example,,,,,,,2026-11-16 09:58:00 +0000,3,Shade,5.00,SHADE,fulfilled,,,,,,
,,,,,,,,,2,Bulb,2.00,BULB,fulfilled,,,,,,
#LO1002,otto@mail.example,paid,2026-11-23 10:00:00 +0000,,,EUR,20.00,2026-11-23 10:00:00 +0000,1,Shade,20.00,SHADE,pending,Otto,DE,,0.00,56,
#LO1003,ida@mail.example,pending,,unfulfilled,,EUR,20.00,2026-11-23 10:00:00 +0000,1,Shade,20.00,SHADE,pending,Ida,DE,,0.00,57,
#LO1004,mia@mail.example,refunded,,fulfilled,2026-11-20 10:00:00 +0000,EUR,20.00,2026-11-19 10:00:00 +0000,1,Shade,20.00,SHADE,fulfilled,Mia,DE,,20.00,58,
#LO1005,leo@mail.example,voided,,unfulfilled,,EUR,20.00,2026-11-19 10:00:00 +0000,1,Shade,20.00,SHADE,pending,Leo,DE,2026-11-20 10:00:00 +0000,0.00,59,
#LO1006,eva@mail.example,paid,,partial,2026-11-20 10:00:00 +0000,EUR,20.00,2026-11-19 10:00:00 +0000,1,Shade,20.00,SHADE,fulfilled,Eva,DE,,0.00,60,
"""


def test_shopify_export_with_blank_continuation_rows(desk: Desk) -> None:
    put(desk.folder, "orders_export.csv", SHOPIFY)
    desk.load()
    facts = desk.known("#LO1001", "shopify")
    assert (facts.state, facts.fulfilment, facts.value) == (OrderState.SHIPPED, Fulfilment.OWN, Decimal("64.90"))
    assert [(i.title, i.quantity) for i in facts.items] == [("Desk lamp, oak", 1), ("Shade", 3), ("Bulb", 2)]
    assert facts.buyer_addr == "harriet@mail.example"
    assert facts.parcels[0].shipped_on == date(2026, 11, 18)
    states = {n: desk.known(f"#LO{n}", "shopify").state.value for n in range(1002, 1007)}
    assert states == {1002: "unshipped", 1003: "pending", 1004: "refunded", 1005: "cancelled", 1006: "shipped"}
    assert desk.known("#LO1006", "shopify").partially_shipped
    assert desk.known("LO1001", "own").order_id == "LO1001", "a buyer may leave the # out"


EBAY = """

Sales Record Number,Order Number,Buyer Username,Buyer Name,Buyer Email,Item Number,Item Title,Custom Label,Quantity,Sold For,Total Price,Sale Date,Paid On Date,Ship By Date,Shipped On Date,Tracking Number,Transaction ID

101,05-15871-40297,harri_22,Harriet,a1b2c3@members.ebay.com,110011001100,Desk lamp,LAMP-1,1,£49.90,£54.90,Nov-16-26,Nov-16-26,Nov-19-26,Nov-18-26,01855041208744,7001
102,13-14975-00010,otto_9,Otto,d4e5f6@members.ebay.com,110011001101,Shade,SHADE,2,£5.00,£10.00,Nov-23-26,Nov-23-26,Nov-26-26,,,7002
,,,,,110011001102,Bulb,BULB,1,£2.00,,Nov-23-26,Nov-23-26,Nov-26-26,,,7003

2,record(s) downloaded,,,,,,,,,,,,,,,
"""


def test_ebay_export_with_empty_lines_before_and_after(desk: Desk) -> None:
    path = put(desk.folder, "eBay.csv", EBAY)
    desk.load()
    facts = desk.known("05-15871-40297", "ebay")
    assert (facts.state, facts.fulfilment, facts.currency) == (OrderState.SHIPPED, Fulfilment.FBM, "GBP")
    assert facts.buyer_addr == "a1b2c3@members.ebay.com"
    assert facts.parcels[0].tracking == "01855041208744"
    waiting = desk.known("13-14975-00010", "ebay")
    assert waiting.state is OrderState.UNSHIPPED
    assert [i.title for i in waiting.items] == ["Shade", "Bulb"]
    assert waiting.ship_by == date(2026, 11, 26)
    assert desk.report(path)["rows"] == 3
    assert desk.report(path)["refused"] == 1


def test_plain_csv_with_a_mapping(tmp_path: Path) -> None:
    columns = {
        "order_id": "Bestellnr.",
        "state": "Status",
        "tracking": "Sendung",
        "carrier": "Versender",
        "shipped_on": "Versanddatum",
        "buyer_addr": "E-Mail",
        "value": "Summe",
    }
    desk = Desk(tmp_path, shop="own", columns=columns)
    put(
        tmp_path,
        "shop.csv",
        "Bestellnr.;Status;Sendung;Versender;Versanddatum;E-Mail;Summe\n2048;versendet;00340434161094000001;DHL;18.11.2026;k@mail.example;1.064,90 €\n2049;seltsam;;;;x@mail.example;5\n",
        encoding="cp1252",
    )
    desk.load()
    facts = desk.known("2048", "own")
    assert (facts.state, facts.value, facts.buyer_addr) == (OrderState.SHIPPED, Decimal("1064.90"), "k@mail.example")
    assert facts.parcels[0].shipped_on == date(2026, 11, 18)
    assert desk.known("2049", "own").state is OrderState.UNKNOWN


def test_shipment_confirmation_adds_the_tracking(desk: Desk) -> None:
    put(desk.folder, "a.txt", tsv(all_orders()))
    put(
        desk.folder,
        "sent.txt",
        tsv(
            {
                "order-id": ID,
                "order-item-id": "",
                "quantity": "",
                "ship-date": "2026-11-18",
                "carrier-code": "Other",
                "carrier-name": "GLS",
                "tracking-number": "ZX99887766",
                "ship-method": "",
            }
        ),
    )
    desk.load()
    facts = desk.known()
    assert [(p.carrier, p.tracking, p.shipped_on) for p in facts.parcels] == [("GLS", "ZX99887766", date(2026, 11, 18))]
    assert facts.value == Decimal("53.79")


# --------------------------------------------------------------------------- merging


def test_reports_merge_into_one_fact(desk: Desk) -> None:
    put(desk.folder, "u.txt", tsv(unshipped()), at=NOW - timedelta(hours=5))
    put(desk.folder, "a.txt", tsv(all_orders()), at=NOW - timedelta(hours=2))
    desk.load()
    facts = desk.known()
    assert facts.state is OrderState.SHIPPED
    assert facts.as_of == NOW - timedelta(hours=2)
    assert facts.buyer_addr == "abc123@marketplace.amazon.de"
    assert facts.value == Decimal("53.79")


def test_stale_is_marked(desk: Desk) -> None:
    put(desk.folder, "u.txt", tsv(unshipped()), at=NOW - timedelta(hours=25))
    desk.load()
    assert desk.known().stale
    assert not desk.known(stale=timedelta(hours=26)).stale


def test_a_newer_edition_replaces_and_an_older_one_changes_nothing(desk: Desk) -> None:
    put(desk.folder, "b.txt", tsv(all_orders()), at=NOW - timedelta(hours=1))
    desk.load()
    put(
        desk.folder,
        "a.txt",
        tsv(all_orders(**{"order-status": "Unshipped", "item-status": "Unshipped"})),
        at=NOW - timedelta(hours=9),
    )
    desk.load()
    assert desk.known().state is OrderState.SHIPPED
    put(desk.folder, "c.txt", tsv(all_orders(**{"order-status": "Shipped - Delivered to Buyer"})), at=NOW)
    desk.load()
    assert desk.known().state is OrderState.DELIVERED


def test_cancelled_after_it_left_is_a_contradiction(desk: Desk) -> None:
    put(
        desk.folder,
        "a.txt",
        tsv(all_orders(**{"order-status": "Cancelled", "item-status": "Cancelled"})),
        at=NOW - timedelta(hours=2),
    )
    put(desk.folder, "f.txt", tsv(fba_shipment()), at=NOW - timedelta(hours=1))
    desk.load()
    assert desk.known().state is OrderState.UNKNOWN
    assert desk.known().conflict


# --------------------------------------------------------------------------- what goes wrong with files


@pytest.mark.parametrize(
    "bad", ["4.43655E+11", "4.4E+11", "4,43655E+11", "302-4471926-883051", "3024471926 8830517", "", "=302-4471926-8830517"]
)
def test_damaged_ids_are_refused_and_not_guessed(desk: Desk, bad: str) -> None:
    path = put(desk.folder, "a.txt", tsv(all_orders(), all_orders(**{"amazon-order-id": bad})))
    desk.load()
    assert (desk.report(path)["rows"], desk.report(path)["refused"]) == (1, 1)
    assert desk.report(path)["problem"].startswith("line 3: ")


def test_a_damaged_tracking_number_is_left_out(desk: Desk) -> None:
    path = put(desk.folder, "f.txt", tsv(fba_shipment(**{"tracking-number": "3.40434E+19"})))
    desk.load()
    assert all(not p.tracking for p in desk.known().parcels)
    assert "tracking number is damaged" in desk.report(path)["problem"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_western_encodings(desk: Desk, encoding: str) -> None:
    put(desk.folder, "a.txt", tsv(all_orders(**{"product-name": "Schöne Lampe für Zuhause – weiß"})), encoding=encoding)
    desk.load()
    assert desk.known().items[0].title == "Schöne Lampe für Zuhause – weiß"


@pytest.mark.parametrize(
    ("encoding", "title"),
    [
        ("cp932", "調光式デスクライト オーク材"),
        ("utf-8", "調光式デスクライト"),
        ("gb18030", "可调光台灯 带接口 橡木色 送货上门"),
        ("big5", "可調光檯燈 附插孔 橡木色 送貨到府"),
    ],
)
def test_eastern_encodings(desk: Desk, encoding: str, title: str) -> None:
    row = all_orders(**{"product-name": title, "sales-channel": "Amazon.co.jp" if encoding == "cp932" else "Amazon.de"})
    put(desk.folder, "a.txt", tsv(*[row] * 3), encoding=encoding)
    desk.load()
    assert desk.known().items[0].title == title


def test_windows_line_ends_nuls_and_blank_lines(desk: Desk) -> None:
    text = tsv(all_orders(), ending="\r\n").replace("LAMP-1", "LA\x00MP-1") + "\r\n\r\n"
    put(desk.folder, "a.txt", text)
    desk.load()
    assert desk.known().items[0].sku == "LAMP-1"


def test_a_file_that_still_grows_is_left_alone(tmp_path: Path) -> None:
    desk = Desk(tmp_path, settle_seconds=60)
    text = tsv(all_orders(), all_orders(**{"amazon-order-id": OTHER}))
    fresh = datetime.now(UTC)
    put(tmp_path, "a.txt", text[: len(text) // 2], at=fresh)
    assert desk.load() == 0
    put(tmp_path, "a.txt", text, at=fresh + timedelta(milliseconds=20))
    assert desk.load() == 0
    assert desk.load() == 1, "it did not change between two looks"
    assert desk.facts(OTHER) is not None


def test_a_row_cut_in_the_middle_is_refused(desk: Desk) -> None:
    text = tsv(all_orders(), all_orders(**{"amazon-order-id": OTHER}))
    path = put(desk.folder, "a.txt", text[:-120])
    desk.load()
    assert desk.facts() is not None
    assert desk.facts(OTHER) is None
    assert "ends in the middle of a row" in desk.report(path)["problem"]


@pytest.mark.parametrize("name", [".a.txt", "~a.txt", "a.txt.part", "a.crdownload", "a.tmp", "a.xlsx"])
def test_files_that_are_no_reports_yet(desk: Desk, name: str) -> None:
    put(desk.folder, name, tsv(all_orders()))
    assert desk.load() == 0


def test_the_same_content_at_a_later_time_is_a_newer_word(desk: Desk) -> None:
    put(desk.folder, "a.txt", tsv(all_orders()), at=NOW - timedelta(hours=30))
    desk.load()
    assert desk.known().stale
    put(desk.folder, "a.txt", tsv(all_orders()), at=NOW - timedelta(hours=1))
    assert desk.load() == 1
    assert not desk.known().stale
    assert desk.known().items[0].quantity == 2


def test_a_known_file_is_not_opened_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    put(desk.folder, "a.txt", tsv(all_orders()))
    desk.load()
    monkeypatch.setattr("daemon.edges.orders.reader.scan", lambda path: pytest.fail("read again"))
    assert desk.load() == 0


def test_what_became_of_a_report_is_told(tmp_path: Path) -> None:
    heard: list[Any] = []
    desk = Desk(tmp_path, on_report=heard.append)
    put(tmp_path, "a.txt", tsv(all_orders(), all_orders(**{"amazon-order-id": "4.4E+11"})))
    put(tmp_path, "odd.csv", "a,b\n1,2\n")
    desk.load()
    assert [(r["kind"], r["rows"], r["refused"], r["as_of"] is None) for r in heard] == [
        ("amazon_all_orders", 1, 1, False),
        ("unknown", 0, 0, True),
    ]
    assert ID not in heard[0]["problem"]


def test_the_same_file_is_read_once(desk: Desk) -> None:
    put(desk.folder, "a.txt", tsv(all_orders()))
    assert desk.load() == 1
    assert desk.load() == 0
    put(desk.folder, "copy.txt", tsv(all_orders()))
    assert desk.load() == 1
    assert len(desk.known().items) == 1
    assert desk.known().items[0].quantity == 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", None),
        ("hello\n", "no known report"),
        ("a,b,c\n1,2,3\n", "no known report"),
        ("%PDF-1.4 \x00\x01\x02", "no known report"),
        ("\n\n\n", "the file is empty"),
        ("x" * 2_000_000, "no known report"),
    ],
)
def test_a_file_of_no_known_kind_is_named_and_not_tried_again(desk: Desk, content: str, problem: str | None) -> None:
    path = put(desk.folder, "odd.csv", content)
    put(desk.folder, "z.txt", tsv(all_orders()))
    assert desk.load() == 1
    assert desk.facts() is not None
    if problem is not None:
        assert problem in desk.report(path)["problem"]
        assert desk.load() == 0


def test_a_folder_that_is_gone_is_an_outage(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "gone")
    with pytest.raises(Transient):
        desk.load()
    with pytest.raises(Transient):
        asyncio.run(desk.book.ping())


def test_memory_stays_bounded_and_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr("daemon.edges.orders.folder.PROGRESS_ROWS", 5_000)

    class Sink(MemoryShelf):
        saved = 0

        def save(self, batch: Any) -> None:
            self.saved += len(batch)

    def peak(rows: int) -> int:
        told: list[tuple[str, int]] = []
        folder = tmp_path / str(rows)
        folder.mkdir()
        head, row = tsv(all_orders()).splitlines()
        lines = (row.replace(ID, f"302-{n:07d}-8830517") for n in range(rows))
        put(folder, "big.txt", "\n".join([head, *lines, ""]))
        sink = Sink()
        tracemalloc.start()
        assert FolderReports(folder, progress=lambda name, n: told.append((name, n))).load_new(sink) == 1
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sink.saved == rows
        assert told == [("big.txt", n) for n in range(5_000, rows + 1, 5_000)]
        return most

    assert peak(15_000) < 1.3 * peak(5_000) + 2_000_000


@pytest.mark.parametrize(
    ("cell", "read"),
    [
        ("1.234,56", "1234.56"),
        ("1,234.56", "1234.56"),
        ("12,5", "12.5"),
        ("¥3,480", "3480"),
        ("EUR 12.00", "12.00"),
        ("１２．５０", "12.50"),
        ("-4.00", "-4.00"),
        ("1 234,50 €", "1234.50"),
        ("n/a", None),
        ("", None),
        ("1.5E+3", None),
    ],
)
def test_amounts(cell: str, read: str | None) -> None:
    assert values.amount(cell) == (None if read is None else Decimal(read))


@pytest.mark.parametrize(
    ("cell", "first", "read"),
    [
        ("2026-11-16T21:03:11+00:00", False, date(2026, 11, 16)), ("2026/11/16 21:03:11 JST", False, date(2026, 11, 16)), ("16.11.2026", True, date(2026, 11, 16)),
        ("16/11/2026", True, date(2026, 11, 16)), ("11/16/2026", False, date(2026, 11, 16)), ("03/04/2026", False, date(2026, 4, 3)), ("03/04/2026", True, date(2026, 3, 4)),
        ("Nov-16-26", False, date(2026, 11, 16)), ("16 Nov 2026", False, date(2026, 11, 16)), ("2026年11月16日", False, date(2026, 11, 16)), ("2026-02-30", False, None), ("soon", False, None), ("46343", False, None),
    ],
)  # fmt: skip
def test_days(cell: str, first: bool, read: date | None) -> None:
    assert values.day(cell, month_first=first) == read


def test_only_documented_names_come_out(desk: Desk) -> None:
    for name, text in (
        ("a.txt", tsv(all_orders())),
        ("u.txt", tsv(unshipped())),
        ("f.txt", tsv(fba_shipment())),
        ("s.csv", SHOPIFY),
        ("e.csv", EBAY),
    ):
        put(desk.folder, name, text)
    desk.load()
    for kept in desk.shelf._rows.values():
        for rows in kept.values():
            for row in rows:
                assert set(row) <= set(ROW_FIELDS), row
                json.dumps(row)


def test_scan_tells_utf8_from_the_rest(tmp_path: Path) -> None:
    assert scan(put(tmp_path, "a", "é".encode())).encoding == "utf-8-sig"
    assert scan(put(tmp_path, "b", "café Größe".encode("cp1252"))).encoding == "cp1252"


# --------------------------------------------------------------------------- asked one at a time


@pytest.fixture
def shop_database(tmp_path: Path) -> Path:
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE orders (no TEXT, status TEXT, mail TEXT, item TEXT)")
        connection.execute("INSERT INTO orders VALUES ('2048', 'shipped', 'k@mail.example', 'Lamp')")
    connection.close()
    return path


QUERY = "SELECT no AS order_id, status AS state, mail AS buyer_addr, item AS title FROM orders WHERE no = :order_id"


async def test_sql_source(shop_database: Path) -> None:
    source = SqlOrders(f"sqlite:///{shop_database}", QUERY, shop="own")
    book = OrderBook(MemoryShelf(), live=[source])
    order = OrderId("#2048", "own", "body")
    plain = OrderId("2048", "own", "body")
    found = await book.lookup([plain, OrderId("9", "own", "body"), OrderId("2048", "amazon", "body")], NOW)
    facts = merge(found[plain], NOW, DAY)
    assert facts is not None
    assert (facts.state, facts.buyer_addr, facts.as_of, facts.source) == (OrderState.SHIPPED, "k@mail.example", NOW, "sql")
    assert sorted(map(len, found.values())) == [0, 0, 1]
    assert order not in found
    await source.ping()
    await book.close()


async def test_sql_source_can_only_read(shop_database: Path) -> None:
    with pytest.raises(ConfigError, match="is no SELECT"):
        SqlOrders(f"sqlite:///{shop_database}", "DELETE FROM orders WHERE no = :order_id", shop="own")
    with pytest.raises(ConfigError, match="order_id"):
        SqlOrders(f"sqlite:///{shop_database}", "SELECT 1", shop="own")
    source = SqlOrders(
        f"sqlite:///{shop_database}", "WITH x AS (SELECT 1) INSERT INTO orders (no) SELECT :order_id", shop="own"
    )
    with pytest.raises((Permanent, Transient)):
        await source.rows("1", NOW)
    with sqlite3.connect(shop_database) as connection:
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (1,)
    connection.close()
    await source.close()


async def test_sql_values_are_values(shop_database: Path) -> None:
    source = SqlOrders(f"sqlite:///{shop_database}", QUERY, shop="own")
    assert await source.rows("x' OR '1'='1", NOW) == []
    await source.close()


def endpoint(answer: Callable[[httpx.Request], httpx.Response], **options: Any) -> HttpOrders:
    return HttpOrders("https://shop.example/orders/{order_id}", shop="own", transport=httpx.MockTransport(answer), **options)


async def test_http_source_with_items_and_parcels() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.url.raw_path.decode()} {request.headers['Authorization']}")
        return httpx.Response(200, json={
            "order_id": "LO/2048", "state": "shipped", "value": 64.9, "currency": "EUR", "buyer_addr": "k@mail.example", "cancel_requested": False, "as_of": "2026-11-24T08:00:00Z",
            "items": [{"title": "Lamp", "quantity": 1}, {"title": "Shade", "quantity": 2}], "parcels": [{"carrier": "DHL", "tracking": "J1", "shipped_on": "2026-11-18"}, {"carrier": "DHL", "tracking": "J2"}],
        })  # fmt: skip

    source = endpoint(answer, header=("Authorization", "Bearer t"))
    rows = await source.rows("LO/2048", NOW)
    facts = merge(rows, NOW, DAY)
    assert facts is not None
    assert (facts.state, facts.value, facts.cancel_requested) == (OrderState.SHIPPED, Decimal("64.9"), False)
    assert [(i.title, i.quantity) for i in facts.items] == [("Lamp", 1), ("Shade", 2)]
    assert [p.tracking for p in facts.parcels] == ["J1", "J2"]
    assert facts.as_of == datetime(2026, 11, 24, 8, tzinfo=UTC)
    await source.rows("LO/2048", NOW)
    assert asked == ["/orders/LO%2F2048 Bearer t"], "the second answer came from the cache"
    await source.close()


async def test_http_cache_runs_out() -> None:
    calls, at = [], [0.0]

    def answer(request: httpx.Request) -> httpx.Response:
        calls.append(1)
        return httpx.Response(404)

    source = endpoint(answer, cache_seconds=60, monotonic=lambda: at[0])
    for moment in (0, 59, 61):
        at[0] = moment
        assert await source.rows("1", NOW) == []
    assert len(calls) == 2
    await source.close()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (httpx.Response(500), Transient), (httpx.Response(429), Transient), (httpx.Response(401), Permanent), (httpx.Response(302, headers={"Location": "https://x"}), Permanent),
        (httpx.Response(200, text="<html>"), Permanent), (httpx.Response(200, json=["x"]), Permanent), (httpx.Response(200, content=b"[" + b" " * 2_000_000 + b"]"), Permanent),
        (httpx.ReadTimeout("slow"), Transient), (httpx.ConnectError("down"), Transient), (httpx.Response(200, json={"order_id": "1", "as_of": "yesterday"}), Permanent),
    ],
)  # fmt: skip
async def test_http_trouble(answer: Any, kind: type[Exception]) -> None:
    def reply(request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    source = endpoint(reply)
    with pytest.raises(kind):
        await source.rows("1", NOW)
    await source.close()


async def test_http_answers_about_another_order_are_left_out() -> None:
    source = endpoint(lambda _: httpx.Response(200, json=[{"order_id": "2", "state": "unshipped"}]))
    assert await source.rows("1", NOW) == []
    await source.close()


async def test_http_waits_no_longer_than_its_timeout() -> None:
    async def slow(request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        return httpx.Response(200)

    source = HttpOrders(
        "https://shop.example/{order_id}", shop="own", timeout_seconds=0.05, transport=httpx.MockTransport(slow)
    )
    begun = time.monotonic()
    with pytest.raises(Transient, match="in time"):
        await source.rows("1", NOW)
    assert time.monotonic() - begun < 2
    await source.close()


@pytest.mark.parametrize(
    "url", ["http://shop.example/{order_id}", "ftp://shop.example/{order_id}", "http://127.0.0.1.evil.example/{order_id}"]
)
def test_http_must_be_encrypted(url: str) -> None:
    with pytest.raises(ConfigError, match="is not https"):
        HttpOrders(url, shop="own")


@pytest.mark.parametrize(
    "url",
    [
        "https://shop.example/{order_id}",
        "http://127.0.0.1:8000/{order_id}",
        "http://[::1]/{order_id}",
        "http://localhost/{order_id}",
    ],
)
async def test_http_on_loopback_may_be_plain(url: str) -> None:
    await HttpOrders(url, shop="own").close()


async def test_an_outage_matters_only_when_nobody_else_knows_the_order(tmp_path: Path) -> None:
    put(tmp_path, "s.csv", SHOPIFY)
    down = endpoint(lambda _: httpx.Response(503))
    book = OrderBook(MemoryShelf(), folders=[FolderReports(tmp_path)], live=[down])
    await book.refresh()
    known, unknown = OrderId("#LO1001", "shopify", "wrapper"), OrderId("#LO9", "shopify", "wrapper")
    assert (await book.lookup([known], NOW))[known]
    with pytest.raises(Transient):
        await book.lookup([unknown], NOW)
    assert await book.lookup([], NOW) == {}
    elsewhere = replace(unknown, shop="ebay", value="05-15871-40297")
    assert (await book.lookup([elsewhere], NOW)) == {elsewhere: []}
    await book.close()
